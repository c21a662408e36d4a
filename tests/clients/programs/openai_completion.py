import os

from openai import OpenAI

openai_api_key = os.environ["API_KEY"]
openai_api_base = os.environ["BASE_URL"]

client = OpenAI(
    api_key=openai_api_key,
    base_url=openai_api_base,
)
completion = client.completions.create(model=os.environ["MODEL"],
                                      prompt="JupySQL is",
                                      max_tokens=20)
print(completion.choices[0].text)
