from tests.support.judges.fixtures import server as server
