from tests.support.judge_fixtures import server as server
