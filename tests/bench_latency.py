#!/usr/bin/env python3
"""Measures the screens on a pseudo-terminal of 200 x 60: key to painted while a conversion runs and
while a text is evaluated, bytes that a new screen takes, and the CPU time of a program that has nothing
to do. Not part of the suite (it needs a quiet machine).

usage: bench_latency.py MLATHE MODEL [SECONDS [TEXT]]
"""
import fcntl, os, pty, random, select, shutil, signal, struct, sys, tempfile, termios, time


def spawn(binary, model, home):
    pid, fd = pty.fork()
    if pid == 0:
        env = dict(os.environ, MLATHE_HOME=home, TERM="xterm-256color", LANG="C.UTF-8")
        os.execve(binary, [binary, model], env)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 200, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    return pid, fd


def drain(fd, quiet):
    """Reads until nothing came for quiet seconds; returns the bytes and when the last ones came."""
    data, last = b"", time.monotonic()
    while select.select([fd], [], [], quiet)[0]:
        try:
            data += os.read(fd, 65536)
        except OSError:  # the program has left
            break
        last = time.monotonic()
    return data, last


def cpu(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(p / 100 * len(values)))]


def measure(fd, seconds):
    """Down and Up on the list of layers: every one moves the marker, so every one paints."""
    times, end, keys = [], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        drain(fd, random.uniform(0.005, 0.05))
        key = b"\x1bOB" if keys % 2 == 0 else b"\x1bOA"
        keys += 1
        start = time.monotonic()
        os.write(fd, key)
        # The marker's row: painted when its reverse or colour run arrives.
        seen = b""
        while "▶".encode() not in seen:
            if not select.select([fd], [], [], 2)[0]:
                break
            seen += os.read(fd, 65536)
        times.append(1000 * (time.monotonic() - start))
    return times


def frames(fd):
    """Bytes of every screen's first frame, and of one painted anew (Ctrl-L)."""
    sizes = []
    for key in b"1", b"2", b"3", b"4", b"\x1bOR", b"\x1b[15~", b"6", b"2", b"\x0c":
        os.write(fd, key)
        sizes.append(len(drain(fd, 0.3)[0]))
    return sizes


def control(seconds):
    """The same through a program that only echoes: what the machine itself adds."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("cat", ["cat"])
    drain(fd, 0.3)
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        drain(fd, random.uniform(0.005, 0.05))
        start = time.monotonic()
        os.write(fd, b"x\n")
        seen = b""
        while seen.count(b"x") < 2:  # the terminal's echo, and cat's
            seen += os.read(fd, 65536)
        times.append(1000 * (time.monotonic() - start))
    os.kill(pid, signal.SIGKILL)
    return times


def report(name, times):
    print(f"{name}: {len(times)} keys, p50 {percentile(times, 50):.1f} ms, "
          f"p99 {percentile(times, 99):.1f} ms, max {max(times):.1f} ms")


def measure_beside(name, pid, fd, start, stop, seconds):
    """Keys on the list of layers while what `start` asked for runs; `stop` ends it."""
    for keys in start:
        os.write(fd, keys)
        drain(fd, 0.1)
    os.write(fd, b"2")
    drain(fd, 0.02)
    before, wall = cpu(pid), time.monotonic()
    report(name, measure(fd, seconds))
    report("  an echoing program beside it", control(seconds / 2))
    print(f"  the worker used {(cpu(pid) - before) / (time.monotonic() - wall):.2f} cores")
    os.write(fd, stop)
    drain(fd, 3)


def main():
    binary, model = sys.argv[1], sys.argv[2]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 20
    text = os.path.abspath(sys.argv[4]) if len(sys.argv) > 4 else None
    home = tempfile.mkdtemp(prefix="mlathe-latency-")
    pid, fd = spawn(binary, model, home)
    try:
        drain(fd, 4)
        os.write(fd, b"2")
        drain(fd, 1)
        report("idle worker", measure(fd, 3))
        print("bytes a new screen:", *frames(fd))
        if text:
            asked = [b"5", b"f", text.encode() + b"\r", b"r"]
            measure_beside("while evaluating", pid, fd, asked, b"5\x1b", seconds)
            os.write(fd, b"2")
            drain(fd, 1)
        measure_beside("while calibrating and converting", pid, fd, [b"c"], b"3\x1b", seconds)
        before = cpu(pid)
        time.sleep(10)
        print(f"idle: {1000 * (cpu(pid) - before):.0f} ms of CPU in 10 s")
        os.write(fd, b"q")
        drain(fd, 1)
    finally:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
