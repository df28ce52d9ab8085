"""Where a chat template shows pictures and videos, found out at load by rendering one."""

from __future__ import annotations

from collections.abc import Sequence

from opsin_server.errors import BadRequest, OpsinError
from opsin_server.text.conversation import ImagePart, Message, TextPart, VideoPart, visual_parts
from opsin_server.text.plain_text import A_CALL, ConversationEncoder
from opsin_server.text.prompt_options import SOME_TOOL, PromptOptions

CALLED = (Message("user", (TextPart("7301"),)), Message("assistant", (TextPart(""),), tool_calls=(A_CALL,)))


def shown(conversation: ConversationEncoder, token: int, part: ImagePart | VideoPart) -> bool:
    """In a user's message. token: what the template writes in its place."""
    message = Message("user", (part, TextPart("7302")))
    try:
        return conversation.ids([message]).count(token) == 1
    except BadRequest:
        return False


def lost_in_results(conversation: ConversationEncoder, token: int, part: ImagePart | VideoPart) -> bool:
    """Whether a tool's message comes to the prompt without it. (One that does not come at all is refused for that.)"""
    result = Message("tool", (part, TextPart("7302")), tool_call_id=A_CALL.id)
    try:
        return conversation.ids([*CALLED, result], options=PromptOptions((SOME_TOOL,))).count(token) != 1
    except OpsinError:
        return False


def check_results(messages: Sequence[Message], lost: Sequence[ImagePart | VideoPart]) -> None:
    """lost: what tools' messages must not have. Raises BadRequest."""
    for part in visual_parts([message for message in messages if message.role == "tool"]):
        if any(isinstance(part, type(other)) for other in lost):
            what = "pictures" if isinstance(part, ImagePart) else "videos"
            message = f"this model's chat template leaves out {what} in a tool's message: send them in a user's"
            code = None if isinstance(part, ImagePart) else "unsupported_video"
            raise BadRequest(message, param=part.param, code=code)
