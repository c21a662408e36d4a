import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
)

completion = client.chat.completions.create(
    model=os.environ["MODEL"],
    messages=[
        {"role": "system", "content": "你是一个有用的助手。"},
        {"role": "user", "content": [
            {"type": "image_url",
             "image_url": {
                 "url": "https://images.invalid/qwen.png"}
             },
            {"type": "text", "text": "插图中的文本是什么?"}
        ]
        }
    ]
)
print(completion.choices[0].message)
