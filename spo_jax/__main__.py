"""Lists the commands: ``python -m spo_jax``."""

from spo_jax.core.cli import printing

COMMANDS = {
    "train": "trains by any method, from a config",
    "sample": "draws images, with a LoRA or without",
    "export": "writes the LoRA of a run for diffusers and the web UIs, or merges it into its model",
    "evaluate": "compares models on the same prompts and noise, by rewards and signs of reward hacking",
    "prepare": "fetches prompts, and prepares preference pairs",
    "demo": "shows a page to try images and to vote on them",
    "evaluate_spm": "measures the accuracy of judges against timestep",
    "convert": "writes a published preference model as a folder",
    "doctor": "looks at the machine, at how a run goes, or at a model, and says what is wrong",
}

if __name__ == "__main__":
    with printing():
        for name, what in COMMANDS.items():
            print(f"python -m spo_jax.{name:13s} {what}")
        print("--help lists the flags of a command; the first run is: python -m spo_jax.train --config=toy")
        print("what this machine has, and what is missing: python -m spo_jax.doctor")
