# Launches a study whose cells never end. It has no `if __name__ == "__main__"`, as a user's script may have none.
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from acts import act, study_of

from alignlab.study.launchers.local import launch, preload

# What a shell starts in the background ignores Ctrl-C, and with it all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
directory = Path(sys.argv[1])
with open(directory / "times main ran", "a") as file:
    file.write("I")
preload(("torch", "alignlab.experiment.config"))
try:
    launch(study_of(directory / "study", "finish", "sleep once", "sleep once", "finish"), jobs=2, work=act)
except KeyboardInterrupt:
    sys.exit(130)
