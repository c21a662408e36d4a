import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
)
stream = client.chat.completions.create(
    model=os.environ["MODEL"],
    messages=[
        {"role": "user", "content": "Tell me in one sentence what Mexico is famous for"},
    ],
    max_tokens=20,
    stream=True,
)
num_pieces = 0
for chunk in stream:
    piece = chunk.choices[0].delta.content
    if piece:
        num_pieces += 1
        print(piece, end="")
print()
print("pieces:", num_pieces)
