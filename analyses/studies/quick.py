"""Claims 1 to 4 on scanned digits in minutes on two cores: five seeds, few images, the shipped backbone."""

from analyses.study import Model, Study

STUDY = Study(
    name="quick",
    task="digits",
    train_size=500,
    test_size=500,
    recipe="short",
    epochs=6,
    batch_size=32,
    seeds=5,
    context=(Model(method="linear"),),
    flatness=(
        Model(method="full"),
        Model(method="adaptformer", dim=8, bits=32),
        Model(method="adaptformer", dim=8, bits=1),
        Model(method="lora", dim=8, bits=1),
    ),
    precision=tuple(Model(method="adaptformer", dim=8, bits=bits) for bits in (32, 4, 2, 1)),
    tradeoff=tuple(
        Model(method="adaptformer", dim=dim, bits=bits) for bits, dim in ((32, 1), (8, 4), (4, 8), (2, 16), (1, 32))
    ),
    samples=64,
    directions=3,
    extent=0.5,
    points=5,
    noise_levels=(0.0, 0.1, 0.3, 0.6, 1.0),
    noise_draws=3,
    surface_points=9,
    surface_extent=1.0,
)
