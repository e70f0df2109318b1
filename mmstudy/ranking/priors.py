"""How pools behaved on the calibration cases: `study.advice` fits these numbers (notebook 11)."""

from mmstudy.ranking.posterior import Prior

PRIORS = {
    # all were trained for a tenth of the training
    False: Prior(
        level=2.8579,
        slope=0.3768,
        own=0.0213,
        log_level=3.1019,
        log_slope=-1.0903,
        log_width=-1.3969,
        log_own=-1.1338,
        log_operator=-1.2479,
        log_shape=0.7412,
        log_scale=0.5803,
    ),
    # for a twentieth, and some then to the end
    True: Prior(
        level=2.851,
        slope=0.1076,
        own=0.0533,
        log_level=3.2529,
        log_slope=-0.8096,
        log_width=-1.1743,
        log_own=-1.0286,
        log_operator=-1.0205,
        log_shape=0.4224,
        log_scale=-0.049,
    ),
}

# How much wider intervals must be, to hold what they say of a pool that is like none of these.
STRETCH = {False: 1.0987, True: 1.2857}
