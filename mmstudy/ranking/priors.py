"""How pools behaved on the calibration cases: `study.advice.priors` fits these numbers (notebook 11)."""

from mmstudy.ranking.posterior import Prior

PRIORS = {
    # all were trained for a tenth of the training
    False: Prior(
        level=2.5837,
        slope=0.1677,
        own=-0.1045,
        log_level=3.4442,
        log_slope=-1.5135,
        log_width=-0.866,
        log_own=-1.1188,
        log_operator=-0.4325,
        log_shape=0.0,
        log_scale=-1.0013,
    ),
    # for a twentieth, and some then to the end
    True: Prior(
        level=2.8835,
        slope=0.01,
        own=-0.0455,
        log_level=3.682,
        log_slope=-1.0532,
        log_width=-0.7253,
        log_own=-1.0883,
        log_operator=-0.2607,
        log_shape=0.0101,
        log_scale=-1.1304,
    ),
}
