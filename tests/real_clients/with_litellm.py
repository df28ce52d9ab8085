"""LiteLLM, by one of its providers (openai, hosted_vllm):

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python with_litellm.py PICTURE.png openai
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices are not fetched

import litellm
from pydantic import BaseModel

litellm.suppress_debug_info = True  # what is printed here is what was said
URL = "data:image/png;base64," + base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
MODEL = f"{sys.argv[2]}/opsin-mini"


class Seen(BaseModel):
    shape: Literal["square", "star"]
    color: Literal["blue", "orange"]


def ask(question: str, **options: Any) -> Any:
    content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": question}]
    return litellm.completion(
        model=MODEL,
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=100,
        num_retries=0,
        **options,
    )


print("chat:", ask("Describe the picture.").choices[0].message.content)

parts = list(ask("What is on the left?", stream=True, stream_options={"include_usage": True}))
whole = litellm.stream_chunk_builder(parts)
print("streamed:", whole.choices[0].message.content)
print("streamed tokens:", whole.usage.completion_tokens)

print("structured:", ask("What is on the left?", response_format=Seen).choices[0].message.content)

paint = {"type": "function", "function": {"name": "paint", "parameters": Seen.model_json_schema()}}
painted = ask("Paint it.", tools=[paint], tool_choice="required", parallel_tool_calls=False)
(call,) = painted.choices[0].message.tool_calls
print("tools:", call.function.arguments)
