"""What the fields that several APIs have are for, as the OpenAPI document tells it beside each."""

from __future__ import annotations

from quire.app.schemas.described import about

# Any request
MODEL = about("A name of `/v1/models`; left out, the model that is served.")
PRIORITY = about("Place in the queue: lower goes first.")
PROMPT = about("A text, token ids, or several of either.")

# Of the prompt
TEMPLATE_KWARGS = about("Variables of the model's chat template, such as `enable_thinking`.")
PROCESSOR_KWARGS = about("Options of the model's image processor, such as `max_pixels`.")
CACHE_SALT = about("Only requests with the same salt share what the prefix cache holds of their prompts.")

# Of the reply
STREAM = about("Whether the reply comes as server-sent events, as it is written.")
MOST_TOKENS = about("The most tokens of the reply, thoughts included; left out, what the context has room for.")
TEMPERATURE = about("How freely tokens are drawn; 0 takes the likeliest.")
TOP_P = about("Tokens are drawn from the likeliest, which together have this probability.")
SEED = about("The same seed draws the same tokens from the same probabilities.")
PARALLEL_CALLS = about("Whether more than one function may be called at once.")
INCLUDE_REASONING = about("Whether the reply has what the model thought.")
