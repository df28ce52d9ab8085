"""LangChain: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python with_langchain.py PICTURE.png"""

import base64
import json
import sys
from pathlib import Path
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL = "data:image/png;base64," + base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()


class Seen(BaseModel):
    """What is seen."""

    shape: Literal["square", "star"]
    color: Literal["blue", "orange"]


@tool
def paint(shape: Literal["square", "star"], color: Literal["blue", "orange"]) -> str:
    """Paints a shape."""
    return "Done."


def ask(question: str) -> list[HumanMessage]:
    picture = {"type": "image_url", "image_url": {"url": URL}}
    return [HumanMessage([picture, {"type": "text", "text": question}])]


chat = ChatOpenAI(model="opsin-mini", temperature=0, max_tokens=100, max_retries=0)
print("chat:", chat.invoke(ask("Describe the picture.")).content)

whole = None
for part in chat.stream(ask("What is on the left?"), stream_usage=True):
    whole = part if whole is None else whole + part
print("streamed:", whole.content)
print("streamed tokens:", whole.usage_metadata["output_tokens"])

for method in ("json_schema", "function_calling"):
    held = chat.with_structured_output(Seen, method=method, strict=True)
    print(f"{method}:", held.invoke(ask("What is on the left?")).model_dump_json())

asked = ask("Paint it.")
called = chat.bind_tools([paint], tool_choice="paint", parallel_tool_calls=False).invoke(asked)
results = [ToolMessage(paint.invoke(call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
after = chat.bind_tools([paint], tool_choice="none").invoke([*asked, called, *results])
print("tools:", json.dumps([call["args"] for call in called.tool_calls]))
print("after:", after.response_metadata["finish_reason"])

by_responses = ChatOpenAI(model="opsin-mini", temperature=0, max_retries=0, use_responses_api=True)
print("response:", by_responses.invoke(ask("Describe the picture.")).text)

embeddings = OpenAIEmbeddings(model="opsin-mini", check_embedding_ctx_length=False, max_retries=0)
print("embedded:", [len(one) for one in embeddings.embed_documents(["a blue square", "a blue star", "seven"])])
