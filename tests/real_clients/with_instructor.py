"""instructor: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python with_instructor.py PICTURE.png"""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Seen(BaseModel):
    shape: Literal["square", "star"]
    color: Literal["blue", "orange"]


MESSAGES = [{"role": "user", "content": ["What is on the left?", instructor.Image.from_path(sys.argv[1])]}]

for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(max_retries=0), mode=mode)
    seen = client.chat.completions.create(
        model="opsin-mini", messages=MESSAGES, response_model=Seen, max_tokens=100, max_retries=1
    )
    print(f"{mode.value}:", seen.model_dump_json())

parts = client.chat.completions.create_partial(
    model="opsin-mini", messages=MESSAGES, response_model=Seen, max_tokens=100, max_retries=1
)
print("streamed:", list(parts)[-1].model_dump_json())
