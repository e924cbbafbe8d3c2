"""DPO by TRL's own DPOTrainer, as an arm of a study: from a model directory and a folder of pairs to a model directory.

    python trl_dpo.py --model DIR --pairs PAIRS --output DIR --steps 100 --batch_size 32 --lr 5e-5

As `command` of an experiment: python ../external/trl_dpo.py --model {backbone} --pairs {data} --output {output}
--steps {steps} --seed {seed} --lr 5e-5. Nothing of alignlab is imported. What is not TRL's default is what
experiments/base.yaml has: the vision tower stays as it is, gradients are clipped at 1, AdamW decays no weights, and the
learning rate stays after a linear warm-up (alignlab's schedule: constant). Precision is 32 bits.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import DPOConfig, DPOTrainer

FROZEN = ("vision_tower", "vision_model", "visual")
"""How vision towers are called in models of transformers."""


def main() -> None:
    arguments = parse()
    set_seed(arguments.seed)
    policy, reference = (
        AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32) for _ in range(2)
    )
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(not any(part in FROZEN for part in name.split(".")))
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.lr, betas=(0.9, 0.999), weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, arguments.warmup_steps))
    )
    processor = AutoProcessor.from_pretrained(arguments.model)
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(arguments.output),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            beta=arguments.beta,
            max_grad_norm=1.0,
            max_length=None,
            seed=arguments.seed,
            dataloader_drop_last=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            disable_dropout=True,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("parquet", data_files=str(arguments.pairs / "train.parquet"), split="train"),
        processing_class=processor,
        optimizers=(optimizer, warm),
    )
    trainer.train()
    policy.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="DPO by TRL's DPOTrainer.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="directory to start from, and the reference")
    parser.add_argument(
        "--pairs", type=Path, required=True, help="folder with train.parquet, as `alignlab pairs` writes it"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory for the trained model")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=32, help="pairs a step")
    parser.add_argument("--lr", type=float, default=5e-5, help="learning rate after the warm-up")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup_steps", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
