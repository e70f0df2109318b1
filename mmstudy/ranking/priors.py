"""How pools behaved on the calibration tasks; `study.advice` fits these numbers and a test holds them to its data."""

from mmstudy.ranking.posterior import Prior

PRIORS = {
    False: Prior(),  # all were trained for a tenth of the training
    True: Prior(),  # for a twentieth, and some then to the end
}
