/* Runs inside test containers: says who it is, and tries to harm another process.
 *
 *   probe ids            one line: real, effective and saved IDs, groups, capabilities
 *   probe fds            one line per open descriptor: number and what it refers to
 *   probe attack PID     one line per attempt: NAME denied ERRNO | NAME succeeded
 *   probe open PATH      tries to read, write and list one path, in the same form
 *   probe victim WORD    prints its PID, holds WORD in its environment and memory, sleeps
 *   probe signals        prints "ready", then the number of each signal; ends on SIGTERM with 42
 *
 * Built statically, so that it runs in an image that holds nothing else.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void report(const char *name, int failed)
{
    if (failed)
        printf("%s denied %s\n", name, strerrorname_np(errno));
    else
        printf("%s succeeded\n", name);
    fflush(stdout);
}

static int print_status_fields(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[4096];
    if (!status) {
        perror("open /proc/self/status");
        return 1;
    }
    while (fgets(line, sizeof line, status)) {
        static const char *const wanted[] = { "Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:",
                                              "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:" };
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
                fputs(line, stdout);
    }
    fclose(status);
    return 0;
}

static int ids(void)
{
    uid_t ruid, euid, suid;
    gid_t rgid, egid, sgid, groups[256];
    getresuid(&ruid, &euid, &suid);
    getresgid(&rgid, &egid, &sgid);
    int count = getgroups(256, groups);
    printf("ruid=%u euid=%u suid=%u rgid=%u egid=%u sgid=%u groups=", ruid, euid, suid, rgid, egid, sgid);
    for (int i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", groups[i]);
    printf("\n");
    return print_status_fields();
}

static int fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    if (!directory) {
        perror("open /proc/self/fd");
        return 1;
    }
    for (struct dirent *entry; (entry = readdir(directory));) {
        char path[64], target[4096];
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(directory))
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%.20s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length > 0 ? length : 0] = 0;
        printf("%s %s\n", entry->d_name, target);
    }
    closedir(directory);
    return 0;
}

/* Reads something through a /proc/PID file or link. */
static void try_proc(pid_t pid, const char *name, int flags)
{
    char path[64], label[80], buffer[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    snprintf(label, sizeof label, "open-%s", name);
    int fd = open(path, flags);
    int failed = fd < 0;
    /* EIO: address 0 of a process we may read has no memory. EBADF: opened for writing. */
    if (!failed && !(flags & (O_DIRECTORY | O_PATH)) && read(fd, buffer, sizeof buffer) < 0)
        failed = errno != EIO && errno != EBADF && errno != EINVAL;
    report(label, failed);
    if (fd >= 0)
        close(fd);
}

static int attack(pid_t pid)
{
    char byte;
    struct iovec local = { &byte, 1 }, remote = { (void *)&byte, 1 };
    struct rlimit limit;
    struct sched_param parameters = { 0 };
    cpu_set_t cpus;

    report("kill-0", kill(pid, 0) != 0);
    report("kill-usr1", kill(pid, SIGUSR1) != 0);
    report("kill-stop", kill(pid, SIGSTOP) != 0);
    report("tgkill", syscall(SYS_tgkill, pid, pid, SIGUSR1) != 0);
    report("sigqueue", sigqueue(pid, SIGUSR1, (union sigval){ 0 }) != 0);
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    if (pidfd >= 0) {
        report("pidfd-send-signal", syscall(SYS_pidfd_send_signal, pidfd, SIGUSR1, NULL, 0) != 0);
        report("pidfd-getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0) < 0);
        report("setns", setns(pidfd, CLONE_NEWUSER) != 0);
    } else {
        report("pidfd-open", 1);
    }
    int attached = ptrace(PTRACE_ATTACH, pid, 0, 0) == 0;
    report("ptrace-attach", !attached);
    if (attached) {
        waitpid(pid, NULL, __WALL);
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
    int seized = ptrace(PTRACE_SEIZE, pid, 0, 0) == 0;
    report("ptrace-seize", !seized);
    report("process-vm-readv", process_vm_readv(pid, &local, 1, &remote, 1, 0) < 0 && errno != EFAULT);
    report("prlimit", prlimit(pid, RLIMIT_CORE, NULL, &limit) != 0);
    report("setpriority", setpriority(PRIO_PROCESS, pid, 19) != 0);
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    report("sched-setaffinity", sched_setaffinity(pid, sizeof cpus, &cpus) != 0);
    report("sched-setscheduler", sched_setscheduler(pid, SCHED_BATCH, &parameters) != 0);
    try_proc(pid, "environ", O_RDONLY);
    try_proc(pid, "mem", O_RDWR);
    try_proc(pid, "maps", O_RDONLY);
    try_proc(pid, "auxv", O_RDONLY);
    try_proc(pid, "exe", O_RDONLY);
    try_proc(pid, "root", O_RDONLY | O_DIRECTORY);
    try_proc(pid, "cwd", O_RDONLY | O_DIRECTORY);
    try_proc(pid, "fd", O_RDONLY | O_DIRECTORY);
    try_proc(pid, "map_files", O_RDONLY | O_DIRECTORY);
    try_proc(pid, "ns/user", O_RDONLY);
    try_proc(pid, "oom_score_adj", O_WRONLY);
    return 0;
}

static int open_path(const char *path)
{
    char byte;
    int fd = open(path, O_RDONLY);
    report("read", fd < 0 || (read(fd, &byte, 1) < 0 && errno != EISDIR));
    if (fd >= 0)
        close(fd);
    fd = open(path, O_WRONLY | O_APPEND);
    report("write", fd < 0);
    if (fd >= 0)
        close(fd);
    DIR *directory = opendir(path);
    report("list", !directory);
    if (directory)
        closedir(directory);
    report("chown", chown(path, 0, 0) != 0);
    report("chmod", chmod(path, 0777) != 0);
    report("unlink", unlink(path) != 0);
    return 0;
}

static _Noreturn void victim(const char *word)
{
    setenv("PROBE_SECRET", word, 1);
    /* Outlives the attacks that do reach it, so that all of them are tried on a living process. */
    signal(SIGUSR1, SIG_IGN);
    printf("%d\n", getpid());
    fflush(stdout);
    for (;;)
        pause();
}

static void print_signal(int number)
{
    char text[16];
    int length = snprintf(text, sizeof text, "%d\n", number);
    if (write(STDOUT_FILENO, text, length) < 0 || number == SIGTERM)
        _exit(42);
}

static _Noreturn void signals(void)
{
    for (int number = 1; number < NSIG; number++)
        if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD)
            signal(number, print_signal);
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "ids"))
        return ids();
    if (!strcmp(verb, "fds"))
        return fds();
    if (!strcmp(verb, "attack") && argc == 3)
        return attack(atoi(argv[2]));
    if (!strcmp(verb, "open") && argc == 3)
        return open_path(argv[2]);
    if (!strcmp(verb, "victim") && argc == 3)
        victim(argv[2]);
    if (!strcmp(verb, "signals"))
        signals();
    fprintf(stderr, "usage: probe ids|fds|attack PID|open PATH|victim WORD|signals\n");
    return 2;
}
