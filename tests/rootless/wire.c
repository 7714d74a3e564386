/* Speaks over networks in tests, on hosts and in containers alike.
 *
 *   wire serve PORT...          TCP and UDP servers on all addresses; prints "ready"
 *   wire serve-at ADDRESS PORT  the same on one address
 *   wire dns ADDRESS NAME=ADDRESS...   name server by UDP and TCP on port 53; prints "ready"
 *   wire who TO PORT [SECONDS]  how a server sees us, by TCP; tries until it has an answer
 *   wire udp TO PORT [SECONDS]  the same by UDP
 *   wire ping TO [SECONDS]      an echo request, through the kind of socket that needs no capability
 *   wire send TO PORT BYTES     sends, and compares the server's checksum
 *   wire receive TO PORT BYTES  receives, and compares the checksum
 *   wire many TO PORT COUNT     so many connections at once; prints how many had an answer
 *   wire series TO PORT COUNT   so many connections one after the other; prints how many had an answer
 *   wire stuck TO PORT COUNT SECONDS [late]   so many connections on which both sides say what nobody reads,
 *                               each as soon as it is open or, late, when all are; prints how many there are,
 *                               and keeps them for a while
 *   wire scan TO FIRST LAST     prints the TCP ports that take a connection
 *   wire lookup NAME            asks the servers in /etc/resolv.conf; prints addresses
 *
 * TO is an address (a link-local one with %INTERFACE) or a name to look up. The server reads one line: "who", "sink BYTES",
 * "source BYTES". Built statically; needs nothing else in an image.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    struct sockaddr_storage storage;
    socklen_t length;
} address;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int is_address(const char *text, uint16_t port, address *to)
{
    struct sockaddr_in *v4 = (void *)&to->storage;
    struct sockaddr_in6 *v6 = (void *)&to->storage;
    char plain[INET6_ADDRSTRLEN];
    const char *scope = strchr(text, '%');
    memset(to, 0, sizeof *to);
    if (scope && (size_t)(scope - text) < sizeof plain) {
        memcpy(plain, text, scope - text);
        plain[scope - text] = 0;
        text = plain;
        v6->sin6_scope_id = if_nametoindex(scope + 1);
    }
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        to->length = sizeof *v4;
        return 1;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        to->length = sizeof *v6;
        return 1;
    }
    return 0;
}

static void print_address(const address *from, char *text, size_t size)
{
    const struct sockaddr_in6 *v6 = (const void *)&from->storage;
    if (from->storage.ss_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)&from->storage)->sin_addr, text, size);
    else if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
        inet_ntop(AF_INET, &v6->sin6_addr.s6_addr[12], text, size);
    else
        inet_ntop(AF_INET6, &v6->sin6_addr, text, size);
}

/* --- names ----------------------------------------------------------------------------------- */

static size_t put_name(uint8_t *to, const char *name)
{
    size_t at = 0;
    while (*name) {
        size_t length = strcspn(name, ".");
        to[at++] = length;
        memcpy(to + at, name, length);
        at += length;
        name += length + (name[length] == '.');
    }
    to[at++] = 0;
    return at;
}

/* The name at `at` in a message; gives where what follows it begins, 0 for nonsense. */
static size_t get_name(const uint8_t *message, size_t size, size_t at, char *name, size_t room)
{
    size_t after = 0, used = 0;
    for (int jumps = 0; at < size;) {
        uint8_t length = message[at];
        if (length >= 0xc0) {
            if (at + 1 >= size || ++jumps > 20)
                return 0;
            if (!after)
                after = at + 2;
            at = (length & 0x3f) << 8 | message[at + 1];
            continue;
        }
        if (!length) {
            if (used)
                used--;
            name[used] = 0;
            return after ? after : at + 1;
        }
        if (at + 1 + length > size || used + length + 2 > room)
            return 0;
        memcpy(name + used, message + at + 1, length);
        used += length;
        name[used++] = '.';
        at += 1 + length;
    }
    return 0;
}

/* Asks one server for one type by UDP. -1: no answer; else how many addresses (0: no such). */
static int ask(const char *server, const char *name, int type, address *found, int room)
{
    uint8_t query[512] = { 0 }, reply[4096];
    char text[256];
    address to;
    uint16_t id = getpid() ^ (type << 8) ^ (uint16_t)(now() * 1000);
    if (strlen(name) > 250 || !is_address(server, 53, &to))
        return -1;
    query[0] = id >> 8, query[1] = id, query[2] = 1, query[5] = 1;
    size_t size = 12 + put_name(query + 12, name);
    query[size + 1] = type, query[size + 3] = 1;
    size += 4;
    for (int attempt = 0; attempt < 3; attempt++) {
        int fd = socket(to.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct pollfd wait = { fd, POLLIN, 0 };
        ssize_t got = -1;
        if (fd >= 0 && connect(fd, (void *)&to.storage, to.length) == 0 && send(fd, query, size, 0) > 0 &&
            poll(&wait, 1, 700) == 1)
            got = recv(fd, reply, sizeof reply, 0);
        close(fd);
        if (got < 12 || reply[0] != query[0] || reply[1] != query[1])
            continue;
        if (reply[3] & 15 && (reply[3] & 15) != 3)
            return -1;
        int answers = reply[6] << 8 | reply[7], count = 0;
        size_t at = get_name(reply, got, 12, text, sizeof text) + 4;
        while (answers-- && at > 4 && at < (size_t)got && count < room) {
            at = get_name(reply, got, at, text, sizeof text);
            if (!at || at + 10 > (size_t)got)
                break;
            int kind = reply[at] << 8 | reply[at + 1], length = reply[at + 8] << 8 | reply[at + 9];
            at += 10;
            if (at + length > (size_t)got)
                break;
            if (kind == type) {
                address *one = &found[count++];
                char printed[INET6_ADDRSTRLEN];
                inet_ntop(kind == 1 ? AF_INET : AF_INET6, reply + at, printed, sizeof printed);
                is_address(printed, 0, one);
            }
            at += length;
        }
        return count;
    }
    return -1;
}

static int lookup(const char *name, address *found, int room)
{
    char line[512], word[256], server[8][256], search[8][256];
    int servers = 0, searches = 0, answered = 0;
    FILE *file = fopen("/etc/resolv.conf", "re");
    while (file && fgets(line, sizeof line, file)) {
        if (servers < 8 && sscanf(line, "nameserver %255s", server[servers]) == 1)
            servers++;
        for (char *rest = line + 6; !strncmp(line, "search", 6) && searches < 8;) {
            int used = 0;
            if (sscanf(rest, " %255s%n", word, &used) != 1)
                break;
            strcpy(search[searches++], word);
            rest += used;
        }
    }
    if (file)
        fclose(file);
    for (int suffix = -1; suffix < searches; suffix++) {
        char full[512];
        snprintf(full, sizeof full, suffix < 0 ? "%s" : "%s.%s", name, suffix < 0 ? "" : search[suffix]);
        for (int i = 0; i < servers; i++) {
            int v4 = ask(server[i], full, 1, found, room);
            int v6 = v4 < 0 ? -1 : ask(server[i], full, 28, found + v4, room - v4);
            if (v4 < 0 || v6 < 0)
                continue;
            answered = 1;
            if (v4 + v6)
                return v4 + v6;
            break;
        }
    }
    errno = answered ? ENOENT : ETIMEDOUT;
    return answered ? 0 : -1;
}

static int find(const char *text, uint16_t port, address *to)
{
    address found[16];
    char printed[INET6_ADDRSTRLEN];
    if (is_address(text, port, to))
        return 1;
    if (lookup(text, found, 16) < 1)
        return 0;
    print_address(&found[0], printed, sizeof printed);
    return is_address(printed, port, to);
}

static int print_lookup(const char *name)
{
    address found[16];
    char text[INET6_ADDRSTRLEN];
    int count = lookup(name, found, 16);
    for (int i = 0; i < count; i++) {
        print_address(&found[i], text, sizeof text);
        puts(text);
    }
    if (count < 1)
        fprintf(stderr, "wire: %s: %s\n", name, count ? "no server answers" : "no such name");
    return count < 1;
}

/* --- transfers ------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t sum(uint64_t hash, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}
#define SUM_START 0xcbf29ce484222325

static uint64_t give(int fd, size_t count)
{
    uint64_t state = 88172645463325252, hash = SUM_START, block[4096];
    while (count) {
        size_t size = count < sizeof block ? count : sizeof block;
        for (size_t i = 0; i < sizeof block / 8; i++)
            block[i] = mix(&state);
        hash = sum(hash, (uint8_t *)block, size);
        for (size_t sent = 0; sent < size;) {
            ssize_t part = send(fd, (uint8_t *)block + sent, size - sent, MSG_NOSIGNAL);
            if (part <= 0)
                return 0;
            sent += part;
        }
        count -= size;
    }
    return hash;
}

static uint64_t take(int fd, size_t count)
{
    uint64_t hash = SUM_START;
    uint8_t block[32768];
    while (count) {
        ssize_t part = recv(fd, block, count < sizeof block ? count : sizeof block, 0);
        if (part <= 0)
            return 0;
        hash = sum(hash, block, part);
        count -= part;
    }
    return hash;
}

static ssize_t read_line(int fd, char *line, size_t room)
{
    size_t used = 0;
    while (used + 1 < room) {
        ssize_t got = recv(fd, line + used, 1, 0);
        if (got <= 0)
            return got;
        if (line[used] == '\n')
            break;
        used++;
    }
    line[used] = 0;
    return used;
}

static void serve_stream(int fd, const address *peer)
{
    char line[128], text[INET6_ADDRSTRLEN], answer[128] = "?\n";
    size_t count;
    if (read_line(fd, line, sizeof line) <= 0)
        return;
    if (!strcmp(line, "who")) {
        print_address(peer, text, sizeof text);
        snprintf(answer, sizeof answer, "%s\n", text);
    } else if (sscanf(line, "sink %zu", &count) == 1) {
        snprintf(answer, sizeof answer, "%016llx\n", (unsigned long long)take(fd, count));
    } else if (sscanf(line, "source %zu", &count) == 1) {
        uint64_t hash = give(fd, count);
        snprintf(answer, sizeof answer, "%016llx\n", (unsigned long long)hash);
    }
    send(fd, answer, strlen(answer), MSG_NOSIGNAL);
}

static int bound(const char *at, uint16_t port, int type)
{
    address own;
    int one = 1, zero = 0;
    int fd = -1;
    if (at ? is_address(at, port, &own) : is_address("::", port, &own)) {
        fd = socket(own.storage.ss_family, type | SOCK_CLOEXEC, 0);
        if (fd < 0 && !at && is_address("0.0.0.0", port, &own))
            fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    }
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!at && own.storage.ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (type == SOCK_DGRAM && own.storage.ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
    if (bind(fd, (void *)&own.storage, own.length) || (type == SOCK_STREAM && listen(fd, 4096)))
        die(at ? at : "bind");
    return fd;
}

/* Answers a datagram from the very address it was sent to. */
static void serve_datagram(int fd)
{
    address peer;
    char text[INET6_ADDRSTRLEN], control[256];
    struct iovec part = { text, sizeof text };
    struct msghdr message = { &peer.storage, sizeof peer.storage, &part, 1, control, sizeof control, 0 };
    if (recvmsg(fd, &message, 0) < 0)
        return;
    peer.length = message.msg_namelen;
    print_address(&peer, text, sizeof text);
    part.iov_len = strlen(text);
    for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one))
        if (one->cmsg_level == IPPROTO_IPV6 && one->cmsg_type == IPV6_PKTINFO)
            ((struct in6_pktinfo *)CMSG_DATA(one))->ipi6_ifindex = 0;
    sendmsg(fd, &message, 0);
}

static _Noreturn void serve(const char *at, char **ports, int count)
{
    struct pollfd fds[64];
    int used = 0;
    signal(SIGCHLD, SIG_IGN);
    for (int i = 0; i < count && used < 63; i++) {
        fds[used++] = (struct pollfd){ bound(at, atoi(ports[i]), SOCK_STREAM), POLLIN, 0 };
        fds[used++] = (struct pollfd){ bound(at, atoi(ports[i]), SOCK_DGRAM), POLLIN, 0 };
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        poll(fds, used, -1);
        for (int i = 0; i < used; i++) {
            address peer = { .length = sizeof peer.storage };
            char text[INET6_ADDRSTRLEN];
            if (!(fds[i].revents & POLLIN))
                continue;
            if (i % 2) {
                serve_datagram(fds[i].fd);
                continue;
            }
            int fd = accept4(fds[i].fd, (void *)&peer.storage, &peer.length, SOCK_CLOEXEC);
            if (fd < 0)
                continue;
            if (fork() == 0) {
                alarm(60);
                serve_stream(fd, &peer);
                /* Until the other side is done too, so that nothing in flight is reset. */
                shutdown(fd, SHUT_WR);
                while (recv(fd, text, sizeof text, 0) > 0)
                    ;
                _exit(0);
            }
            close(fd);
        }
    }
}

/* --- the name server --------------------------------------------------------------------------- */

static size_t answer(uint8_t *message, size_t size, char **zone, int count)
{
    char name[256];
    size_t end = get_name(message, size, 12, name, sizeof name) + 4;
    int type, known = 0, answers = 0;
    if (size < 12 || end <= 4 || end > size)
        return 0;
    type = message[end - 4] << 8 | message[end - 3];
    size_t at = end;
    for (int i = 0; i < count; i++) {
        size_t length = strcspn(zone[i], "=");
        uint8_t bytes[16];
        if (strlen(name) != length || strncasecmp(zone[i], name, length) || !zone[i][length])
            continue;
        known = 1;
        int is_v6 = inet_pton(AF_INET6, zone[i] + length + 1, bytes) == 1;
        if (!is_v6 && inet_pton(AF_INET, zone[i] + length + 1, bytes) != 1)
            continue;
        if (type != (is_v6 ? 28 : 1))
            continue;
        uint8_t head[] = { 0xc0, 12, 0, type, 0, 1, 0, 0, 0, 0, 0, is_v6 ? 16 : 4 };
        memcpy(message + at, head, sizeof head);
        memcpy(message + at + sizeof head, bytes, head[11]);
        at += sizeof head + head[11];
        answers++;
    }
    message[2] = 0x84 | (message[2] & 1);
    message[3] = 0x80 | (known ? 0 : 3);
    message[6] = 0, message[7] = answers;
    memset(message + 8, 0, 4);
    return at;
}

static _Noreturn void name_server(const char *at, char **zone, int count)
{
    struct pollfd fds[] = { { bound(at, 53, SOCK_DGRAM), POLLIN, 0 }, { bound(at, 53, SOCK_STREAM), POLLIN, 0 } };
    uint8_t message[65536];
    signal(SIGPIPE, SIG_IGN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        poll(fds, 2, -1);
        address peer = { .length = sizeof peer.storage };
        if (fds[0].revents & POLLIN) {
            ssize_t got = recvfrom(fds[0].fd, message, 1024, 0, (void *)&peer.storage, &peer.length);
            size_t size = got > 0 ? answer(message, got, zone, count) : 0;
            if (size)
                sendto(fds[0].fd, message, size, 0, (void *)&peer.storage, peer.length);
        }
        if (fds[1].revents & POLLIN) {
            int fd = accept4(fds[1].fd, NULL, NULL, SOCK_CLOEXEC);
            struct timeval patience = { 2, 0 };
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            if (recv(fd, message, 2, MSG_WAITALL) == 2) {
                size_t wanted = message[0] << 8 | message[1];
                if (wanted <= 1024 && recv(fd, message + 2, wanted, MSG_WAITALL) == (ssize_t)wanted) {
                    size_t size = answer(message + 2, wanted, zone, count);
                    message[0] = size >> 8, message[1] = size;
                    send(fd, message, size + 2, MSG_NOSIGNAL);
                }
            }
            close(fd);
        }
    }
}

/* --- clients ----------------------------------------------------------------------------------- */

/* A connected socket, or -1. */
static int connected(const address *to, int milliseconds)
{
    int fd = socket(to->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd wait = { fd, POLLOUT, 0 };
    int error = 0;
    socklen_t size = sizeof error;
    if (fd < 0)
        return -1;
    if (connect(fd, (const void *)&to->storage, to->length) && errno != EINPROGRESS)
        error = errno;
    else if (poll(&wait, 1, milliseconds) != 1)
        error = ETIMEDOUT;
    else
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        close(fd);
        errno = error;
        return -1;
    }
    fcntl(fd, F_SETFL, 0);
    return fd;
}

static int once_tcp(const address *to, char *text, size_t room)
{
    struct timeval patience = { 2, 0 };
    int fd = connected(to, 1000), done = 0;
    if (fd < 0)
        return 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    done = send(fd, "who\n", 4, MSG_NOSIGNAL) == 4 && read_line(fd, text, room) > 0;
    if (!done && !errno)
        errno = ECONNRESET;
    close(fd);
    return done;
}

static int once_udp(const address *to, char *text, size_t room)
{
    int fd = socket(to->storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct pollfd wait = { fd, POLLIN, 0 };
    ssize_t got = -1;
    errno = ETIMEDOUT;
    if (fd >= 0 && connect(fd, (const void *)&to->storage, to->length) == 0 && send(fd, "who", 3, 0) == 3) {
        if (poll(&wait, 1, 500) == 1)
            got = recv(fd, text, room - 1, 0);
        else
            errno = ETIMEDOUT;
    }
    if (got >= 0)
        text[got] = 0;
    close(fd);
    return got > 0;
}

static int once_ping(const address *to, char *text, size_t room)
{
    int is_v6 = to->storage.ss_family == AF_INET6;
    int fd = socket(to->storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
    uint8_t request[16] = { is_v6 ? 128 : 8, 0, 0, 0, 0, 0, 0, 1, 'w', 'i', 'r', 'e' }, reply[64];
    struct pollfd wait = { fd, POLLIN, 0 };
    int done = 0;
    if (fd < 0)
        die("open an ICMP socket");
    if (sendto(fd, request, sizeof request, 0, (const void *)&to->storage, to->length) > 0) {
        errno = ETIMEDOUT;
        done = poll(&wait, 1, 1000) == 1 && recv(fd, reply, sizeof reply, 0) == sizeof request &&
               reply[0] == (is_v6 ? 129 : 0) && !memcmp(reply + 8, request + 8, 8);
    }
    close(fd);
    snprintf(text, room, "ok");
    return done;
}

static int who(const char *name, uint16_t port, double seconds, int (*once)(const address *, char *, size_t))
{
    double end = now() + seconds;
    char text[128];
    address to;
    for (;;) {
        if (find(name, port, &to) && once(&to, text, sizeof text)) {
            puts(text);
            return 0;
        }
        if (now() > end)
            die(name);
        poll(NULL, 0, 50);
    }
}

static int transfer(const char *name, uint16_t port, size_t count, int is_sending)
{
    char line[64], expected[64];
    uint64_t hash;
    address to;
    struct timeval patience = { 60, 0 };
    int fd = find(name, port, &to) ? connected(&to, 10000) : -1;
    if (fd < 0)
        die(name);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    snprintf(line, sizeof line, "%s %zu\n", is_sending ? "sink" : "source", count);
    if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
        die(name);
    hash = is_sending ? give(fd, count) : take(fd, count);
    if (!hash || read_line(fd, line, sizeof line) <= 0)
        die("transfer ended early");
    snprintf(expected, sizeof expected, "%016llx", (unsigned long long)hash);
    if (strcmp(line, expected)) {
        fprintf(stderr, "wire: checksum %s, expected %s\n", line, expected);
        return 1;
    }
    puts("ok");
    return 0;
}

static int many(const char *name, uint16_t port, int count)
{
    struct pollfd *fds = calloc(count, sizeof *fds);
    char text[128];
    address to;
    double end = now() + 30;
    int answered = 0, open = 0;
    if (!fds || !find(name, port, &to))
        die(name);
    for (int i = 0; i < count; i++) {
        fds[i] = (struct pollfd){ socket(to.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), POLLOUT, 0 };
        if (fds[i].fd < 0)
            die("socket");
        if (connect(fds[i].fd, (void *)&to.storage, to.length) && errno != EINPROGRESS) {
            close(fds[i].fd);
            fds[i].fd = -1;
        } else {
            open++;
        }
    }
    while (open && now() < end) {
        poll(fds, count, 1000);
        for (int i = 0; i < count; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            if (fds[i].events == POLLOUT && !(fds[i].revents & (POLLERR | POLLHUP)) &&
                send(fds[i].fd, "who\n", 4, MSG_NOSIGNAL) == 4) {
                fds[i].events = POLLIN;
                continue;
            }
            answered += fds[i].events == POLLIN && recv(fds[i].fd, text, sizeof text, 0) > 0;
            close(fds[i].fd);
            fds[i].fd = -1;
            open--;
        }
    }
    printf("%d\n", answered);
    return answered != count;
}

static int series(const char *name, uint16_t port, int count)
{
    char text[128];
    int answered = 0;
    address to;
    if (!find(name, port, &to))
        die(name);
    for (int i = 0; i < count; i++) {
        struct timeval patience = { 5, 0 };
        int fd = connected(&to, 5000);
        if (fd < 0) {
            fprintf(stderr, "wire: connection %d: %s\n", i, strerror(errno));
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        /* The server ends first: that is what the world in between has to remember. */
        answered += send(fd, "who\n", 4, MSG_NOSIGNAL) == 4 && read_line(fd, text, sizeof text) > 0 &&
                    recv(fd, text, 1, 0) == 0;
        close(fd);
    }
    printf("%d\n", answered);
    return answered != count;
}

/* The server is asked for more than is read here, so that it does not read what is said here either. */
static void babble(int fd)
{
    static const char request[] = "source 1000000000\n", words[65536] = "";
    send(fd, request, strlen(request), MSG_NOSIGNAL | MSG_DONTWAIT);
    while (send(fd, words, sizeof words, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        ;
}

static int stuck(const char *name, uint16_t port, int count, double seconds, int late)
{
    static const char words[65536] = "";
    int *fds = calloc(count, sizeof *fds), open = 0;
    address to;
    if (!fds || !find(name, port, &to))
        die(name);
    for (int i = 0; i < count; i++) {
        int fd = connected(&to, 2000);
        if (fd < 0)
            continue;
        fds[open++] = fd;
        if (!late)
            babble(fd);
    }
    printf("%d\n", open);
    fflush(stdout);
    for (int i = 0; late && i < open; i++)
        babble(fds[i]);
    for (double end = now() + seconds; now() < end; poll(NULL, 0, 100))
        for (int i = 0; i < open; i++)
            while (send(fds[i], words, sizeof words, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
                ;
    return 0;
}

static int scan(const char *name, int first, int last)
{
    enum { AT_ONCE = 256 };
    address to;
    if (!find(name, 1, &to))
        die(name);
    for (int base = first; base <= last; base += AT_ONCE) {
        struct pollfd fds[AT_ONCE];
        double end = now() + 0.7;
        int count = last - base + 1 < AT_ONCE ? last - base + 1 : AT_ONCE, left = 0;
        for (int i = 0; i < count; i++) {
            is_address(name, base + i, &to);
            fds[i] = (struct pollfd){ socket(to.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), POLLOUT, 0 };
            if (connect(fds[i].fd, (void *)&to.storage, to.length) && errno != EINPROGRESS) {
                close(fds[i].fd);
                fds[i].fd = -1;
            } else {
                left++;
            }
        }
        while (left && now() < end) {
            poll(fds, count, 100);
            for (int i = 0; i < count; i++) {
                int error = 0;
                socklen_t size = sizeof error;
                if (fds[i].fd < 0 || !fds[i].revents)
                    continue;
                getsockopt(fds[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
                if (!error)
                    printf("%d\n", base + i);
                close(fds[i].fd);
                fds[i].fd = -1;
                left--;
            }
        }
        for (int i = 0; i < count; i++)
            if (fds[i].fd >= 0)
                close(fds[i].fd);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (!strcmp(verb, "serve") && argc > 2)
        serve(NULL, argv + 2, argc - 2);
    if (!strcmp(verb, "serve-at") && argc > 3)
        serve(argv[2], argv + 3, argc - 3);
    if (!strcmp(verb, "dns") && argc > 2)
        name_server(argv[2], argv + 3, argc - 3);
    if (!strcmp(verb, "who") && argc > 3)
        return who(argv[2], atoi(argv[3]), argc > 4 ? atof(argv[4]) : 10, once_tcp);
    if (!strcmp(verb, "udp") && argc > 3)
        return who(argv[2], atoi(argv[3]), argc > 4 ? atof(argv[4]) : 10, once_udp);
    if (!strcmp(verb, "ping") && argc > 2)
        return who(argv[2], 0, argc > 3 ? atof(argv[3]) : 10, once_ping);
    if (!strcmp(verb, "send") && argc == 5)
        return transfer(argv[2], atoi(argv[3]), strtoul(argv[4], NULL, 10), 1);
    if (!strcmp(verb, "receive") && argc == 5)
        return transfer(argv[2], atoi(argv[3]), strtoul(argv[4], NULL, 10), 0);
    if (!strcmp(verb, "many") && argc == 5)
        return many(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(verb, "series") && argc == 5)
        return series(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(verb, "stuck") && argc >= 6)
        return stuck(argv[2], atoi(argv[3]), atoi(argv[4]), atof(argv[5]), argc > 6 && !strcmp(argv[6], "late"));
    if (!strcmp(verb, "scan") && argc == 5)
        return scan(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(verb, "lookup") && argc == 3)
        return print_lookup(argv[2]);
    fprintf(stderr, "usage: wire serve|serve-at|dns|who|udp|ping|send|receive|many|series|stuck|scan|lookup …, see its source\n");
    return 2;
}
