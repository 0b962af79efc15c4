from tests.support.training_fixtures import examples as examples
from tests.support.training_fixtures import family as family
from tests.support.training_fixtures import folder as folder
from tests.support.training_fixtures import seen as seen
