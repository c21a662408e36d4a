import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["BASE_URL"].removesuffix("/v1"), api_key=os.environ["API_KEY"])

message = client.messages.create(
    model=os.environ["MODEL"],
    max_tokens=30,
    system="You are a helpful assistant.",
    messages=[{"role": "user", "content": "Hello, how are you?"}],
)
print(message)
