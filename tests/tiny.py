"""A size and a recipe that train in a second."""

from search_space.compressor import Size
from search_space.transformer import Shape
from trainer.recipe import Lesson, Recipe

SHAPE = Shape(layers=1, width=32, heads=2, kv_heads=1, head_width=16, feedforward=48)
SIZE = Size(vocab=300, encoder=SHAPE, decoder=SHAPE)
RECIPE = Recipe(
    steps=12,
    piece=64,
    pieces=3,
    curriculum=[Lesson(0.5, 32), Lesson(1.0, 64)],
    continuation=0.3,
    documents=6,
    checkpoint_every=2,
)
