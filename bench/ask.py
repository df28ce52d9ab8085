"""A server as a user starts it, with the embedded model on this device, answers about a picture.

python bench/ask.py             on a CUDA device
python bench/ask.py --tiny      on a CPU
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gpu_plan import SERVED
from processes import LOCAL, free_port
from stage import given

SAMPLES = Path(__file__).resolve().parent.parent / "server" / "opsin_server" / "models" / "samples"
QUESTION, ANSWER = "Describe the picture.", "A blue square and an orange star."
START_SECONDS = 100.0
COMMAND = "from opsin_server.cli import main; main()"


def body() -> dict[str, Any]:
    picture = base64.b64encode((SAMPLES / "square_and_star.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": QUESTION},
    ]
    return {
        "model": "opsin-mini", "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": content}]
    }  # fmt: skip


def post(url: str, wanted: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The answer, and milliseconds."""
    data, heads = json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    began = time.perf_counter()
    with LOCAL.open(urllib.request.Request(url, data, heads), timeout=30) as answer:
        return json.load(answer), 1e3 * (time.perf_counter() - began)


def ready(url: str, child: subprocess.Popen[bytes], end: float) -> None:
    while time.time() < end:
        if child.poll() is not None:
            raise RuntimeError(f"the server ended with {child.returncode}; what it said is above")
        try:
            with LOCAL.open(f"{url}/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the server did not become ready in time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = given(parser, "ask", 2)
    port, device = free_port(), run.device
    environment = {k: v for k, v in os.environ.items() if device.cuda or k not in ("OPSIN_KERNELS", "TRITON_INTERPRET")}
    for row in run.rows.todo([SERVED]):
        with run.rows.row(row, seconds=START_SECONDS + 20) as values:
            began, url = time.perf_counter(), f"http://127.0.0.1:{port}"
            line = [sys.executable, "-c", COMMAND, "serve", "--port", str(port), "--device", device.device.type]
            line += ["--ephemeral"]
            child = subprocess.Popen(line, stdin=subprocess.DEVNULL, env=environment)
            try:
                ready(url, child, min(run.end, time.time() + START_SECONDS))
                values["ready_s"] = time.perf_counter() - began
                answers = [post(f"{url}/v1/chat/completions", body()) for _ in range(2)]
            finally:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(15)
                except subprocess.TimeoutExpired:
                    child.kill()
            said = answers[0][0]["choices"][0]["message"]["content"]
            values |= {"answer": said, "first_ms": answers[0][1], "again_ms": answers[1][1]}
            if said != ANSWER:
                raise RuntimeError(f"the answer is {said!r}, not {ANSWER!r}")


if __name__ == "__main__":
    main()
