import os

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a small model would go on with fields of its own

    name: str
    age: int


server = OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"])
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(server, mode=mode)
    person = client.chat.completions.create(
        model=os.environ["MODEL"], response_model=Person, temperature=0, max_tokens=200, max_retries=1,
        messages=[{"role": "user", "content": "Alice is 30 years old."}])
    print(mode.value, repr(person))
