"""A stand-in for KFP's API server: the requests of our commands, with shapes that `kfp_server_api` vouches for.

What it receives must be an object of KFP's API to the last key, and what it answers is made from such objects; what the
run does is told by a test, one state for each time that somebody looks.
"""

import datetime
import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import kfp_server_api as api

JSON = "application/json"
BEGAN = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def check(value, kind):
    """Fail where a received value is not of a kind of KFP's API."""
    if kind in ("object", "datetime"):
        return
    if kind.startswith("list["):
        for item in value:
            check(item, kind[5:-1])
    elif model := getattr(api, kind, None):
        if hasattr(model, "allowable_values"):
            assert value in model.allowable_values, f"{value} is no {kind}"
            return
        kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
        assert value.keys() <= kinds.keys(), f"{kind} has no {value.keys() - kinds.keys()}"
        for key, inner in value.items():
            check(inner, kinds[key])
    elif kind == "str":
        assert isinstance(value, str), f"{value!r} is no str"


class Kfp:
    """A server on a free port; use as a context.

    Args:
        states: What each look at the run finds: (state of the run, {task: state}), an HTTP status, or None for a
            connection that breaks. The last one stays.
        health: What the older health page says of the version.
        multi_user: Whether it serves several users.
        refusal: With what POST of a run is refused, if it is.
    """

    def __init__(self, states=(("SUCCEEDED", {}),), health=None, multi_user=False, refusal=None):
        self.states, self.multi_user, self.refusal = list(states), multi_user, refusal
        self.health = {"tag_name": "2.17.0"} if health is None else health
        self.experiments, self.runs, self.retried, self.requests, self.uploads = [], [], [], [], {}
        self.looks = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer("GET", None)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer("POST", json.loads(body or "null") if self.headers["Content-Type"] == JSON else body)

            def answer(self, method, body):
                outer.requests.append((method, self.path))
                try:
                    status, found = outer.answer(method, self.path, body)
                except AssertionError as error:
                    status, found = 400, {"error": str(error), "code": 3, "message": str(error)}
                if status is None:
                    self.connection.close()
                    return
                data = json.dumps(api.ApiClient().sanitize_for_serialization(found)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method, address, body):
        path, _, query = address.partition("?")
        if path.endswith("/healthz"):
            new = api.V2beta1GetHealthzResponse(multi_user=self.multi_user, pipeline_store="database")
            return 200, new if "v2beta1" in path else {"commit_sha": "unknown", "multi_user": False} | self.health
        if path == "/apis/v2beta1/experiments" and method == "GET":
            return 200, api.V2beta1ListExperimentsResponse(experiments=self.experiments)
        if path == "/apis/v2beta1/experiments":
            check(body, "V2beta1Experiment")
            assert bool(body.get("namespace")) == self.multi_user, "a namespace goes with several users"
            experiment = api.V2beta1Experiment(experiment_id=str(uuid.uuid4()), display_name=body["display_name"])
            self.experiments.append(experiment)
            return 200, experiment
        if path == "/apis/v2beta1/runs":
            check(body, "V2beta1Run")
            assert not self.refusal, self.refusal
            self.runs.append(body | {"run_id": str(uuid.uuid4())})
            return 200, api.V2beta1Run(run_id=self.runs[-1]["run_id"], state="PENDING")
        if path == "/apis/v2beta1/pipelines/upload":
            (name,) = parse_qs(query)["name"]
            self.uploads[name] = body
            return 200, api.V2beta1Pipeline(pipeline_id=str(uuid.uuid4()), display_name=name, created_at=BEGAN)
        if match := re.fullmatch(r"/apis/v2beta1/runs/([-\w]+):retry", path):
            self.retried.append(match[1])
            return 200, {}
        if match := re.fullmatch(r"/apis/v2beta1/runs/([-\w]+)", path):
            return self.look(match[1])
        raise AssertionError(f"{method} {path} is not served")

    def look(self, run_id):
        run = next((run for run in self.runs if run["run_id"] == run_id), None)
        if run is None:
            return 404, {"error": "", "code": 5, "message": f"ResourceNotFoundError: Run {run_id} not found."}
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        if state is None or isinstance(state, int):
            return state, {"message": "upstream connect error"}
        details = [
            api.V2beta1PipelineTaskDetail(
                run_id=run_id,
                task_id=f"{run_id}-{name}",
                display_name=name.split("#")[0],  # a loop makes several of one name
                start_time=BEGAN + datetime.timedelta(minutes=index),
                end_time=BEGAN + datetime.timedelta(minutes=index, seconds=72),
                state=told,
            )
            for index, (name, told) in enumerate(state[1].items())
        ]
        return 200, api.V2beta1Run(
            run_id=run_id,
            state=state[0],
            created_at=BEGAN,
            pipeline_spec=run["pipeline_spec"],
            run_details=api.V2beta1RunDetails(task_details=details),
        )
