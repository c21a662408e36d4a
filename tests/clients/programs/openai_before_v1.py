import os

import openai

# Modify OpenAI's API key and API base to use the server.
openai.api_key = os.environ["API_KEY"]
openai.api_base = os.environ["BASE_URL"]
completion = openai.Completion.create(model=os.environ["MODEL"],
                                      prompt="San Francisco is a")

print("Completion result:", completion)
