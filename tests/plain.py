"""Code run without alignlab, in forks of one process that has imported torch, transformers and peft alone."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

SERVER = """
import json, os, sys, traceback
import peft, safetensors.torch, torch
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama
from transformers.models.llava import modeling_llava

for line in sys.stdin:
    request = json.loads(line)
    (said, out), (told, err) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(out, 1), os.dup2(err, 2)
        code = 0
        try:
            exec(request, {"__name__": "__main__"})
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) else 1
            if not isinstance(error, SystemExit):
                traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)
    os.close(out), os.close(err)
    with os.fdopen(said) as said, os.fdopen(told) as told:  # little enough for a pipe
        texts = said.read(), told.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@cache
def _server() -> subprocess.Popen[str]:
    """It ends with the tests, whose end closes its input."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SERVER], **pipes)


def run_plain(code: str) -> Done:
    """Run code as ``python -c`` would, but for what is imported already; it says little."""
    server = _server()
    server.stdin.write(json.dumps(code) + "\n")
    server.stdin.flush()
    return Done(*json.loads(server.stdout.readline()))
