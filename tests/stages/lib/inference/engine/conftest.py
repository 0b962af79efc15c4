from tests.support.training.fixtures import family as family
