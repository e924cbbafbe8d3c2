"""preloaded: imported once by the process that children are forked from; nothing else."""

import warnings

import torch

from alignlab.backbones import PARTS, Backbone
from alignlab.certificate import training  # noqa: F401
from alignlab.experiment.run import quiet_libraries

torch.set_num_threads(1)
quiet_libraries()
warnings.simplefilter("ignore")
with torch.device("meta"):
    Backbone("scenes-parts", fresh=PARTS)  # what transformers notes of a class when a model is made has to be there
