"""Find the caption of a picture: embed both with the backbone of a run, and rank by cosine.

    alignlab fit --config experiments/infonce.yaml --output runs/infonce
    python experiments/examples/find_caption.py

The lines `# %%` begin cells, as editors and jupytext read them; so this is a notebook as well.
"""

# %% The backbone: a run's, an exported one, or any directory that transformers reads
import matplotlib.pyplot as plt
import torch

import alignlab
from alignlab.data import Scenes
from alignlab.functional import normalize

backbone = alignlab.load("runs/infonce")

# %% Pictures that no training saw, and their captions. A content is pictures and texts in any order.
examples = [Scenes().examples("test")[index] for index in range(8)]
pictures = [example.images[0] for example in examples]
captions = [example.captions[0] for example in examples]
queries = [example.query for example in examples]  # (picture, "summarize the image in one word :")
targets = [example.target for example in examples]  # (caption, "summarize the caption in one word :")

# %% Embeddings (B, D), and their cosines
with torch.no_grad():
    similarity = (
        normalize(backbone.embed(backbone.encoder.contents(queries)))
        @ normalize(backbone.embed(backbone.encoder.contents(targets))).mT
    )  # (pictures, captions)

# %% The captions of the first picture, nearest first
for index in similarity[0].argsort(descending=True):
    print(f"{similarity[0, index]:6.3f} {'*' if index == 0 else ' '} {captions[index]}")
found = (similarity.argmax(1) == torch.arange(len(examples))).sum()
print(f"the caption of {found} of {len(examples)} pictures is the nearest")

# %% All of them: each row a caption, each column a picture, the right ones on the diagonal
figure, axes = plt.subplots(figsize=(9.8, 4.5), layout="constrained")
shown = axes.imshow(similarity.mT, cmap="viridis")
axes.set_yticks(range(len(captions)), captions, fontsize=7)
axes.set_xticks([])
for column, picture in enumerate(pictures):
    place = axes.inset_axes((column - 0.45, len(captions) - 0.4, 0.9, 0.9), transform=axes.transData)
    place.imshow(picture)
    place.set_axis_off()
figure.colorbar(shown, label="cosine")
figure.savefig("similarity.png", dpi=120)
print("similarity.png")
