from tests.support.training.fixtures import examples as examples
from tests.support.training.fixtures import family as family
from tests.support.training.fixtures import folder as folder
from tests.support.training.fixtures import seen as seen
