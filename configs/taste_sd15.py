r"""SPO on SD 1.5 with a preference model of your own taste, from `configs/taste_spm_sd15.py`. It has not been run.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts_500 --limit=500 --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/taste_sd15.py --out=runs/taste_sd15

Prompts of your own are a text file with one in each line: --config.prompts=FILE. These are the settings of
`configs/sd15_overnight.py`, which has the hours and the memory on GPUs of 24 GB, with the other judge. No run with them
has been made.
"""

from spo_jax import load_config


def get_config():
    """Returns the settings of `configs/sd15_overnight.py` with another judge."""
    config = load_config("sd15_overnight")
    config.spm.model = "runs/taste_spm_sd15/spm"  # --config.spm.model=FOLDER
    config.spm.tokenizer = ""  # the one that lies beside the model
    return config.lock()
