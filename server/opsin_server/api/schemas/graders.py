"""Bodies of the routes of graders, as OpenAI's alpha API has them; and what these answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opsin_server.chat.fields import Strict, unsupported

Text = Annotated[str, Field(max_length=2**18)]


def _string_check(value: Any) -> Any:
    if value != "string_check":
        raise unsupported(value, 'graders of type "string_check" are run here')
    return value


class StringCheck(Strict):
    type: Annotated[Literal["string_check"], BeforeValidator(_string_check)]
    name: Annotated[str, Field(max_length=256)]
    operation: Annotated[
        Literal["eq", "ne", "like", "ilike"],
        Field(description="equal, not equal; the input holds the reference, or does but for the case of letters"),
    ]
    input: Annotated[Text, Field(description="with {{ item.NAME }}, {{ sample.output_text }} and the like in it")]
    reference: Annotated[Text, Field(description="as the input")]


class ValidateGrader(Strict):
    grader: StringCheck


class RunGrader(Strict):
    grader: StringCheck
    model_sample: Annotated[Text, Field(description="what a model said: `sample.output_text`")]
    item: Annotated[dict[str, Any] | None, Field(description="`item`")] = None


def described_run(grader: StringCheck, reward: float, errors: dict[str, bool], seconds: float) -> dict[str, Any]:
    """errors: those that there were, or could have been."""
    return {
        "reward": reward,
        "metadata": {
            "name": grader.name,
            "type": grader.type,
            "errors": {
                "formula_parse_error": False,
                "invalid_variable_error": False,
                "model_grader_parse_error": False,
                "model_grader_refusal_error": False,
                "model_grader_server_error": False,
                "model_grader_server_error_details": None,
                "other_error": False,
                "python_grader_runtime_error": False,
                "python_grader_runtime_error_details": None,
                "python_grader_server_error": False,
                "python_grader_server_error_type": None,
                "sample_parse_error": False,
                "truncated_observation_error": False,
                "unresponsive_reward_error": False,
                **errors,
            },
            "execution_time": seconds,
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
    }
