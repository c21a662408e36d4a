import json
import os

import requests

url = f"{os.environ['BASE_URL']}/completions"

headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['API_KEY']}"}
data = {
    "model": os.environ["MODEL"],
    "prompt": "JupySQL is",
    "max_tokens": 100,
    "temperature": 0
}

response = requests.post(url, headers=headers, data=json.dumps(data))

print(response.json()["choices"][0]["text"])
