import os

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


server = {"api_base": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"]}
llm = OpenAILike(model=os.environ["MODEL"], is_chat_model=True, is_function_calling_model=True, context_window=1024,
                 max_tokens=60, temperature=0, **server)
print(llm.chat([ChatMessage(role="user", content="How do plants make food?")]))
print("".join(piece.delta or "" for piece in llm.stream_complete("The sky is")))
print(repr(llm.as_structured_llm(Person).complete("Alice is 30 years old.").raw))
vector = OpenAILikeEmbedding(model_name=os.environ["MODEL"], **server).get_text_embedding("one")
print("vector:", len(vector))
