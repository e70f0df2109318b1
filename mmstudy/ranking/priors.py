"""How pools behaved on the calibration cases: `study.advice.priors` fits these numbers (notebook 11)."""

from mmstudy.ranking.posterior import Prior

PRIORS = {
    # all were trained for a tenth of the training
    False: Prior(
        level=2.7409,
        slope=0.3152,
        own=-0.2282,
        log_level=2.7966,
        log_slope=-1.3878,
        log_width=-1.1569,
        log_own=-1.1952,
        log_operator=-0.6803,
        log_shape=0.4916,
        log_scale=0.0771,
    ),
    # for a twentieth, and some then to the end
    True: Prior(
        level=2.7462,
        slope=0.0958,
        own=-0.1381,
        log_level=3.3996,
        log_slope=-1.0713,
        log_width=-0.875,
        log_own=-1.1394,
        log_operator=-0.5843,
        log_shape=0.6758,
        log_scale=0.2697,
    ),
}
