# One image for worker, beat, Flower and web: the package as a wheel in a venv, with the versions of constraints.txt, which
# are those that the tests ran with, on a Python on which .ci/run runs the fast tests.

FROM python:3.13-slim-trixie AS build
WORKDIR /src
# The compiler stays in this stage.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY optimizer optimizer
# Fail the build rather than make an image with the slow engine. --only-binary: a dependency without a wheel fails by name
# and is not compiled here.
RUN BUILD_EXTENSION=yes pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
    && pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: -c constraints.txt \
        "$(echo /dist/*.whl)[celery,flower,remote,watch,web]"

FROM python:3.13-slim-trixie
# A fixed id, so that a directory of the host can be given to it; with a named group, since Celery takes an id without a
# name for root's and warns. A new volume gets the owner of /output.
RUN groupadd --gid 10001 rolling \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rolling \
    && install -d /input \
    && install -d -o 10001 -g 10001 /output
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
# What `celery -A tasks` starts, and its settings.
COPY celeryconfig.py ./
COPY tasks tasks
USER 10001:10001
CMD ["celery", "-A", "tasks", "worker", "--loglevel", "INFO", "-n", "worker@%h"]
