# Entry of the Python runtime: /var/lang/bin/python3.x /var/runtime/bootstrap.py
#
# Only this file is compiled at each start, so it only hands over; the runtime is a module beside it, compiled ahead.
# Python 3.6 or newer. Speaks the Runtime API 2018-06-01 that AWS_LAMBDA_RUNTIME_API names and runs the handler that
# _HANDLER (or the first argument) names, in LAMBDA_TASK_ROOT.
import firelet_runtime

if __name__ == "__main__":
    firelet_runtime.main()
