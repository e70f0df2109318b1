"""What was chosen on the pilot tasks, before any task of the confirmation was run; all else is exploratory.

The pilot had the eight perceptrons of `notebooks/profiles/pilot.yml`. When each choice was written down, and what came
later, says REPRODUCING.md.
"""

from mmstudy.study.policies import ENDS_AND_MIDDLE

# the size whose relation to the gain is tested at the trained network, and what it is tested against
RELATION = "extent, children, median, multiple @100%"
RELATION_RIVALS = ("training_loss @100%", "parameters")

# the size that is tested as a prediction: the best of those that cost up to a tenth of the training on the pilot tasks
# (10% there, when rounded); on all tasks, with families beyond perceptrons, it costs 12%
HEADLINE = "extent, random, median @5%"
RIVAL = "minibatch_loss @10% + parameters"  # the best that looks at training data only, at a similar price
VALIDATION_RIVAL = "validation_accuracy @10%"  # the best of all published ones, at a similar price

# validation accuracy and, as far as both agree on the pool, the early loss, or the headline, with the parameter count
COMBINED = "flagged_loss @10%"
COMBINED_SIZE = "flagged_size @5%"

# three candidates are trained in full, and the others placed by a fit to what these show
ANCHORED = {"places": ENDS_AND_MIDDLE, "fit": ("rank", "parameters", "operator")}
ANCHORED_RIVAL = "minibatch_loss @5% + parameters"
ANCHORED_SIZE = "extent, children, median, multiple @2% + parameters"

# what was wanted on the confirmation tasks: in the repository since the commit before the first results
GOAL_RHO = 0.65  # mean ρ of size with the gain, at the trained network and early
GOAL_REGRET = 0.3  # points of accuracy, of the best policy
GOAL_BUDGET = 0.12  # that it may cost, in trainings of the whole pool
