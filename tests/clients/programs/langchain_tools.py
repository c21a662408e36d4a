import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


@tool
def get_weather(city: str) -> str:
    """The weather in a city"""
    return f"sunny in {city}"


class Person(BaseModel):
    name: str
    age: int


server = {"base_url": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"], "model": os.environ["MODEL"]}
llm = ChatOpenAI(**server, temperature=0, max_tokens=100)
print("".join(chunk.content for chunk in llm.stream("How do plants make food?")))
calls = llm.bind_tools([get_weather], tool_choice="get_weather").invoke("What is the weather in Paris?").tool_calls
print(get_weather.invoke(calls[0]["args"]))
print(repr(llm.with_structured_output(Person, method="json_schema").invoke("Alice is 30.")))
print("vector:", len(OpenAIEmbeddings(**server, check_embedding_ctx_length=False).embed_query("one")))
