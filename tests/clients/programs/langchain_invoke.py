import os

from langchain_openai import ChatOpenAI

base_url = os.environ["BASE_URL"]
api_key = os.environ["API_KEY"]
model_id = os.environ["MODEL"]

llm = ChatOpenAI(
        base_url=base_url,
        api_key=api_key,
        model=model_id
)

result = llm.invoke(input="你可以做什么？")

print(result.content)
