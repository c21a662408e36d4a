import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["BASE_URL"].removesuffix("/v1"), api_key=os.environ["API_KEY"])
weather = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]},
}

with client.messages.stream(
    model=os.environ["MODEL"],
    max_tokens=100,
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
    tools=[weather],
    tool_choice={"type": "tool", "name": "get_weather"},
) as stream:
    for event in stream:
        print(event.type)
print(stream.get_final_message().content)
