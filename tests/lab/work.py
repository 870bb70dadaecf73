"""What a guest with devices does across a snapshot: scripts of its root, each until `/run/stop` is there.

They note their progress and their complaints (`/run/faults`) in `/run`, which is memory of the guest, so a restored guest
judges its disk and its connections by what it knew when it was saved.
"""

STOP = "touch /run/stop"

# Every other file goes past the page cache. A name is used again after 48, so the disk does not fill up; its sum is
# written behind its content, so a name in `sums` always stands for a whole file.
FILES = """#!/bin/busybox sh
n=0
while [ ! -e /run/stop ]; do
    n=$((n + 1)) name=$((n % 48))
    head -c 131072 /dev/urandom >/run/source
    if [ $((n % 2)) = 0 ]; then
        dd if=/run/source of=/mnt/file$name bs=32k oflag=direct 2>/run/dd || cat /run/dd >>/run/faults
    else
        cp /run/source /mnt/file$name 2>>/run/faults
        sync
    fi
    sum=$(sha256sum </run/source)
    mkdir -p /run/sums
    echo "${sum%% *}  /mnt/file$name" >/run/sums/$name
    echo $n >>/run/files
done
echo done >/run/files-done
"""

# Deep queues of direct writes, read back and verified by fio itself; each of its runs is one step.
BLOCKS = """#!/bin/busybox sh
n=0
while [ ! -e /run/stop ]; do
    fio --name=blocks --filename=/mnt/blocks --size=6M --rw=randwrite --bs=16k --ioengine=libaio --iodepth=16 --direct=1 \\
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --eta=never >/run/fio 2>/run/fio-errors \\
        || cat /run/fio /run/fio-errors >>/run/faults
    n=$((n + 1))
    echo $n >>/run/blocks
done
echo done >/run/blocks-done
"""

# Numbered lines to an echo and back over one TCP connection to ADDRESS: each must return once, in order.
STREAM = """#!/bin/busybox sh
pad=$(head -c 400 /dev/zero | tr '\\0' x)
numbers() {
    n=0
    while [ ! -e /run/stop ]; do
        n=$((n + 1))
        echo "$n $pad"
        [ $((n % 20)) = 0 ] && sleep 0.1
    done
    echo $n >/run/sent
}
numbers | socat -t 60 - TCP:$1 >/run/echoed 2>>/run/faults
echo $? >/run/stream-done
"""

# A vsock connection that says nothing: noted is how it ends.
IDLE = """#!/bin/busybox sh
mkfifo /run/silence
sleep 100000 >/run/silence &  # no pipeline: the shell would wait for this one as well
socat - VSOCK-CONNECT:2:$1 </run/silence >/run/idle 2>/run/idle-end
echo $? >/run/idle-done
"""

SCRIPTS = {"work-files": FILES, "work-blocks": BLOCKS, "work-stream": STREAM, "work-idle": IDLE}
