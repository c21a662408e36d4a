import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
)
weather = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
items = [{"role": "user", "content": "What is the weather in Paris?"}]
reply = client.responses.create(
    model=os.environ["MODEL"],
    input=items,
    tools=[weather],
    tool_choice="required",
    parallel_tool_calls=False,
    temperature=0,
)
call = reply.output[0]
print(call.name, call.arguments)
items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
with client.responses.stream(model=os.environ["MODEL"], input=items, max_output_tokens=10) as stream:
    pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    print("".join(pieces))
    print("pieces:", len(pieces), stream.get_final_response().status)
