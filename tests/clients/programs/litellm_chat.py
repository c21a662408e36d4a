import os

import litellm

asked = {"model": "openai/" + os.environ["MODEL"], "api_base": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"],
         "temperature": 0, "max_tokens": 60}
messages = [{"role": "user", "content": "How do plants make food?"}]
print(litellm.completion(messages=messages, **asked).choices[0].message.content)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(messages=messages, stream=True, **asked)]
print("pieces:", len(pieces))
weather = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
reply = litellm.completion(messages=messages, tools=[weather], tool_choice="required", **asked)
print(reply.choices[0].message.tool_calls[0].function)
