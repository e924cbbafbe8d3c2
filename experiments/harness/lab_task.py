"""Write a task for lmms-eval that asks for captions of the scenes lab, so that another harness judges our models.

    alignlab export runs/mle exported
    python experiments/harness/lab_task.py TASKS
    python -m lmms_eval --model llava_hf --model_args pretrained=exported,device_map=cpu --device cpu --batch_size 1 \
        --tasks lab_caption --include_path TASKS --output_path results --log_samples

What is exported is a directory of transformers, so lmms-eval reads it as any other: `llava_hf` models of LLaVA's types,
`huggingface` (in bfloat16, on GPUs) the rest. On a GPU: device_map=cuda:0 and --device cuda:0. Without `device_map`
lmms-eval 0.7.3 hands transformers 5 an empty one, which it refuses. Its own tasks read data from the hub.

The prompt is that of `CaptionAccuracy`, and so is the score, `exact`, which is to be the same.
"""

import argparse
import json
from pathlib import Path

from alignlab.data import Scenes

TASK = """\
task: lab_caption
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function lab_caption.pictures
doc_to_messages: !function lab_caption.messages
doc_to_text: !function lab_caption.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 48, temperature: 0, do_sample: false, num_beams: 1}}
process_results: !function lab_caption.judge
metric_list:
  - {{metric: exact, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""

FUNCTIONS = '''\
"""What lmms-eval asks of the task."""

from PIL import Image


def pictures(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def messages(doc, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": pictures(doc)[0]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def judge(doc, results):
    said, reference = (" ".join(text.lower().split()) for text in (results[0], doc["answer"]))
    return {"exact": float(said == reference)}
'''


def write_task(folder: Path, *, num_examples: int) -> None:
    """Write the task ``lab_caption``, its data and pictures of the lab's test split into a folder."""
    data = Scenes()
    split = data.examples("test")
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index in range(num_examples):
        example, file = split[index], (folder / "pictures" / f"{index}.png").absolute()
        example.images[0].save(file)
        rows.append({"picture": str(file), "question": data.caption_prompt, "answer": example.captions[0]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lab_caption.yaml").write_text(TASK.format(data=json.dumps(str((folder / "captions.jsonl").absolute()))))
    (folder / "lab_caption.py").write_text(FUNCTIONS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--num_examples", type=int, default=256)
    arguments = parser.parse_args()
    write_task(arguments.folder, num_examples=arguments.num_examples)
