"""Chalice: deploy, invoke, deploy again and delete a function, the real program."""

import json

from conftest import tool

APP = """from chalice import Chalice

app = Chalice(app_name="sweet")


@app.lambda_function()
def greet(event, context):
    return {"hello": event["name"], "version": VERSION}
"""


def test_chalice_deploys_invokes_and_deletes(firelet, tmp_path):
    project = tmp_path / "sweet"
    (project / ".chalice").mkdir(parents=True)
    stages = {"dev": {"environment_variables": {"STAGE": "dev"}, "lambda_memory_size": 256}}
    (project / ".chalice/config.json").write_text(json.dumps({"version": "2.0", "app_name": "sweet", "stages": stages}))
    (project / "requirements.txt").write_text("")

    def chalice(*arguments, **options):
        done = firelet.run(tool("chalice"), *arguments, cwd=project, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(version):
        (project / "app.py").write_text(APP.replace("VERSION", str(version)))
        return chalice("deploy")

    def invoke():
        return firelet.run(
            "sh", "-c", f"echo '{{\"name\": \"you\"}}' | {tool('chalice')} invoke --name greet", cwd=project
        )

    out = deploy(1)
    assert "Creating IAM role: sweet-dev" in out and "Creating lambda function: sweet-dev-greet" in out
    assert json.loads(invoke().stdout) == {"hello": "you", "version": 1}
    configuration = firelet.lambda_.get_function_configuration(FunctionName="sweet-dev-greet")
    assert configuration["Environment"]["Variables"]["STAGE"] == "dev"
    assert configuration["MemorySize"] == 256
    assert "Updating lambda function: sweet-dev-greet" in deploy(2)
    assert json.loads(invoke().stdout) == {"hello": "you", "version": 2}

    out = chalice("delete")
    assert "Deleting function:" in out and "Deleting IAM role: sweet-dev" in out
    names = [function["FunctionName"] for function in firelet.lambda_.list_functions()["Functions"]]
    assert "sweet-dev-greet" not in names
