"""Fit one intervention on a frozen LLM, test it against prompting, and log it.

    python train.py                                     ten antonyms, the default model
    python train.py --data.task my_examples.jsonl --data.num_examples 20
    python train.py --data.task present-past --model.source singular-plural
    python train.py --model.site residual --model.layers 12 --trainer.max_steps 50
    python train.py --config lightning_logs/version_0/config.yaml

Results go to lightning_logs/version_N: results.json, intervention.safetensors, config.yaml, TensorBoard events.
"""

from laai.cli import learn as main

if __name__ == "__main__":
    main()
