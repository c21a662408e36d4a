import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


provider = OpenAIProvider(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"])
model = OpenAIChatModel(os.environ["MODEL"], provider=provider)
settings = {"temperature": 0.0, "max_tokens": 100}
print(Agent(model, model_settings=settings).run_sync("How do plants make food?").output)
for output in (Person, NativeOutput(Person)):  # as a call of a tool, and as a JSON schema
    print(repr(Agent(model, output_type=output, model_settings=settings).run_sync("Alice is 30 years old.").output))
