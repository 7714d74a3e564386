/*
 * Both ends of what the benchmark sends through networks, and a client of name servers. Linked
 * statically, so that it runs in any container.
 *
 *   traffic serve PORT                     serves until killed
 *   traffic upload HOST PORT MILLISECONDS  Mbit/s that arrive at the server in that time, over one connection
 *   traffic download HOST PORT MILLISECONDS   Mbit/s that arrive here
 *   traffic connect HOST PORT MILLISECONDS    connections per second: four at a time, each asks for a
 *                                             byte and gets it
 *   traffic lookup NAME COUNT              microseconds until the first name server of /etc/resolv.conf
 *                                          has answered for NAME's A record: COUNT numbers, one a line
 *
 * HOST is an IPv4 or IPv6 address. Anything that fails ends it with a message and status 1: a rate over
 * what happened to work would mean nothing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 4, CHUNK = 128 * 1024 };

static char chunk[CHUNK];

/* What the server saw of an upload; both ends are the same machine. */
struct upload_result {
    uint64_t bytes;
    double seconds;
};

static void fail(const char *format, ...)
{
    int number = errno;
    va_list arguments;
    va_start(arguments, format);
    fputs("traffic: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(number));
    exit(1);
}

/* A stuck network is an error, not a long wait. */
static void limit(int socket)
{
    struct timeval ten_seconds = {.tv_sec = 10};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &ten_seconds, sizeof ten_seconds);
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &ten_seconds, sizeof ten_seconds);
}

static struct sockaddr_storage address(const char *host, const char *port, socklen_t *length)
{
    struct sockaddr_storage result = {0};
    struct sockaddr_in *four = (struct sockaddr_in *)&result;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&result;
    if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(atoi(port));
        *length = sizeof *four;
    } else if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(atoi(port));
        *length = sizeof *six;
    } else {
        errno = EINVAL;
        fail("address %s", host);
    }
    return result;
}

/* ---- server ---------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* True when there is something to read before the deadline. */
static int readable(int peer, double deadline)
{
    struct pollfd poll_for = {.fd = peer, .events = POLLIN};
    double left = deadline - now();
    return left > 0 && poll(&poll_for, 1, (int)(left * 1e3) + 1) == 1;
}

static void serve_one(int peer)
{
    struct upload_result result = {0};
    uint32_t milliseconds;
    double start;
    ssize_t got = 1;
    char verb;
    limit(peer);
    if (read(peer, &verb, 1) != 1)
        return;
    switch (verb) {
    case 'u':
        if (recv(peer, &milliseconds, sizeof milliseconds, MSG_WAITALL) != sizeof milliseconds)
            return;
        start = now();
        while (got > 0 && readable(peer, start + milliseconds / 1e3)) {
            got = read(peer, chunk, sizeof chunk);
            result.bytes += got > 0 ? got : 0;
        }
        result.seconds = now() - start;
        if (got <= 0 || write(peer, &result, sizeof result) != sizeof result)
            return;
        /* Closed while something is unread, the connection would be reset, and the result with it. */
        while (read(peer, chunk, sizeof chunk) > 0)
            ;
        break;
    case 'd':
        while (write(peer, chunk, sizeof chunk) > 0)
            ;
        break;
    case 'c':
        if (write(peer, &verb, 1) != 1)
            return;
        break;
    }
}

static void serve(const char *port)
{
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port)), .sin6_addr = in6addr_any};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), off = 0, on = 1;
    if (listener < 0)
        fail("socket");
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 512))
        fail("listen on port %s", port);
    /* More than there are connections at a time: none waits for a transfer that winds down. */
    for (int i = 1; i < 3 * WORKERS; i++) {
        pid_t worker = fork();
        if (worker < 0)
            fail("fork");
        if (worker == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            break;
        }
    }
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        if (peer < 0)
            continue;
        serve_one(peer);
        close(peer);
    }
}

/* ---- clients --------------------------------------------------------------------------------- */

static int dial(const struct sockaddr_storage *where, socklen_t length, char verb)
{
    int peer = socket(where->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer < 0)
        fail("socket");
    limit(peer);
    if (connect(peer, (const struct sockaddr *)where, length))
        fail("connect");
    if (write(peer, &verb, 1) != 1)
        fail("send");
    return peer;
}

/* One that listens for somebody may accept before there is anybody behind it: a byte must come back. */
static void wait_for(const struct sockaddr_storage *where, socklen_t length)
{
    char verb = 'c';
    for (int i = 0; i < 200; i++) {
        int peer = socket(where->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        limit(peer);
        int done = !connect(peer, (const struct sockaddr *)where, length) && write(peer, &verb, 1) == 1 &&
                   read(peer, &verb, 1) == 1;
        close(peer);
        if (done)
            return;
        usleep(50000);
    }
    fail("nobody serves there");
}

static void upload(const struct sockaddr_storage *where, socklen_t length, uint32_t milliseconds)
{
    int peer = dial(where, length, 'u');
    struct pollfd either = {.fd = peer, .events = POLLIN | POLLOUT};
    struct upload_result result;
    double start = now();
    if (write(peer, &milliseconds, sizeof milliseconds) != sizeof milliseconds)
        fail("send");
    /* The server says when it is enough. */
    while (poll(&either, 1, 1000) >= 0 && !(either.revents & POLLIN)) {
        if (now() - start > milliseconds / 1e3 + 10) {
            errno = ETIMEDOUT;
            fail("the server's result");
        }
        if (either.revents & POLLOUT && send(peer, chunk, sizeof chunk, MSG_DONTWAIT) < 0 && errno != EAGAIN)
            fail("send");
    }
    if (recv(peer, &result, sizeof result, MSG_WAITALL) != sizeof result)
        fail("the server's result");
    printf("%.1f\n", result.bytes * 8 / 1e6 / result.seconds);
}

static void download(const struct sockaddr_storage *where, socklen_t length, double seconds)
{
    int peer = dial(where, length, 'd');
    double start = now();
    uint64_t total = 0;
    while (now() - start < seconds) {
        ssize_t got = read(peer, chunk, sizeof chunk);
        if (got <= 0)
            fail("receive");
        total += got;
    }
    printf("%.1f\n", total * 8 / 1e6 / (now() - start));
}

static void connections(const struct sockaddr_storage *where, socklen_t length, double seconds)
{
    int results[2];
    uint64_t total = 0, count;
    double start = now(), took;
    if (pipe(results))
        fail("pipe");
    for (int i = 0; i < WORKERS; i++) {
        if (fork() != 0)
            continue;
        for (count = 0; now() - start < seconds; count++) {
            char byte;
            int peer = dial(where, length, 'c');
            if (read(peer, &byte, 1) != 1)
                fail("receive");
            /* The server closes first: no port of ours stays taken. */
            if (read(peer, &byte, 1) != 0)
                fail("the end of the connection");
            close(peer);
        }
        _exit(write(results[1], &count, sizeof count) != sizeof count);
    }
    for (int i = 0, status; i < WORKERS; i++)
        if (wait(&status) < 0 || status != 0)
            exit(1);
    took = now() - start;
    for (int i = 0; i < WORKERS; i++) {
        if (read(results[0], &count, sizeof count) != sizeof count)
            fail("results");
        total += count;
    }
    printf("%.1f\n", total / took);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void name_server(char *server, size_t size)
{
    char line[256];
    FILE *file = fopen("/etc/resolv.conf", "r");
    if (!file)
        fail("/etc/resolv.conf");
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "nameserver %255s", line) == 1) {
            snprintf(server, size, "%s", line);
            fclose(file);
            return;
        }
    errno = ENOENT;
    fail("no name server in /etc/resolv.conf");
}

static void lookup(const char *name, int count)
{
    char server[256];
    socklen_t length;
    unsigned char query[300] = {0}, answer[1500];
    size_t size = 12;
    name_server(server, sizeof server);
    struct sockaddr_storage where = address(server, "53", &length);
    int peer = socket(where.ss_family, SOCK_DGRAM, 0);
    if (peer < 0)
        fail("socket");
    limit(peer);
    if (connect(peer, (struct sockaddr *)&where, length))
        fail("connect to %s", server);
    query[2] = 1; /* recursion desired */
    query[5] = 1; /* one question */
    for (const char *label = name; *label;) {
        size_t width = strcspn(label, ".");
        if (width == 0 || width > 63 || size + width > 250) {
            errno = EINVAL;
            fail("%s", name);
        }
        query[size++] = width;
        memcpy(query + size, label, width);
        size += width;
        label += width + (label[width] == '.');
    }
    query[size + 2] = 1; /* type A */
    query[size + 4] = 1; /* class IN */
    size += 5;
    for (int i = 0; i < count; i++) {
        ssize_t got;
        query[0] = i >> 8;
        query[1] = i;
        double start = now();
        if (send(peer, query, size, 0) < 0)
            fail("ask %s", server);
        do {
            got = recv(peer, answer, sizeof answer, 0);
            if (got < 12)
                fail("the answer of %s", server);
        } while (memcmp(answer, query, 2));
        double took = now() - start;
        if ((answer[3] & 15) != 0 || (answer[6] | answer[7]) == 0) {
            errno = ENOENT;
            fail("%s says of %s: code %d, %d answers", server, name, answer[3] & 15, answer[7]);
        }
        printf("%.1f\n", took * 1e6);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(verb, "serve") && argc == 3)
        serve(argv[2]);
    if (!strcmp(verb, "lookup") && argc == 4) {
        lookup(argv[2], atoi(argv[3]));
        return 0;
    }
    if (argc == 5) {
        socklen_t length;
        struct sockaddr_storage where = address(argv[2], argv[3], &length);
        double seconds = atoi(argv[4]) / 1e3;
        wait_for(&where, length);
        if (!strcmp(verb, "upload"))
            return upload(&where, length, atoi(argv[4])), 0;
        if (!strcmp(verb, "download"))
            return download(&where, length, seconds), 0;
        if (!strcmp(verb, "connect"))
            return connections(&where, length, seconds), 0;
    }
    fputs("usage: traffic serve PORT | upload|download|connect HOST PORT MILLISECONDS | lookup NAME COUNT\n", stderr);
    return 2;
}
