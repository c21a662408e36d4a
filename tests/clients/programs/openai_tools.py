import os

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"])
model = os.environ["MODEL"]
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
asked = {"model": model, "tools": [weather], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
reply = client.chat.completions.create(messages=messages, **asked)
call = reply.choices[0].message.tool_calls[0]
print(reply.choices[0].finish_reason, call.function.name, call.function.arguments)
with client.chat.completions.stream(messages=messages, **asked) as stream:
    for event in stream:
        if event.type == "tool_calls.function.arguments.done":
            print("streamed:", event.name, event.parsed_arguments)
messages += [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
print(client.chat.completions.create(model=model, messages=messages, max_tokens=20).choices[0].message.content)


class Person(BaseModel):
    name: str
    age: int


parsed = client.chat.completions.parse(
    model=model, messages=[{"role": "user", "content": "Alice is 30."}], response_format=Person, temperature=0)
print(repr(parsed.choices[0].message.parsed))
vectors = client.embeddings.create(model=model, input=["one", "two"]).data
print("vectors:", len(vectors), len(vectors[0].embedding))
