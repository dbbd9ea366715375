/* A load generator: many readers of one stream, each delivery checked.
 *
 * usage: load PORT CLIENTS READY MARK [BYTES_PER_SECOND [JOINS_PER_SECOND]] <commands
 *
 * The first line on standard input has the lengths in bytes of the requests that follow. CLIENTS connections to
 * 127.0.0.1:PORT send the requests in turn, spread over source addresses (28,000 ports each); at most 20 of them connect at the
 * same time (nginx' listen queue is 511), or with JOINS_PER_SECOND so many in each second. A client is ready once READY
 * has come. Until all clients are ready, a closed
 * client retries, 100 times in total: Pushpin closes one or two of 5,000. From then on a delivery is MARK and a decimal
 * number; the program skips the bytes in between, so that it can read the events of every peer. An empty READY is the
 * end of the response's head.
 *
 *   expect FIRST COUNT    every client must get the numbers FIRST .. FIRST+COUNT-1, in order, each once
 *
 * Lines on standard output, JSON; times are CLOCK_MONOTONIC in nanoseconds:
 *   {"ready": CLIENTS}
 *   {"expecting": FIRST}
 *   {"served": NUMBER}    every client has it
 *   {"rows": [[first, median, p99, last], ...], "wrong": 0}     all clients have all; per number, when clients got it
 *   {"lost": CLIENT, "why": "..."}                              a connection that ended, or a number out of order
 *
 * With BYTES_PER_SECOND the clients are slow: each has a small receive buffer and that rate, and nothing is checked;
 * 0 means as fast as they can. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { BUFFER = 1 << 18, CARRY = 128, ON_THE_WAY = 20, PER_ADDRESS = 2000, TICKS = 10, RETRIES = 100, MAX_HEAD = 8192 };
enum { MAX_REQUESTS = 1000 };

/* The parser's position in a response: RFC 9112, section 7.1. A chunk may end anywhere inside an event. */
enum where { HEAD, SIZE, DATA, DATA_END, NOT_CHUNKED };

struct client {
    int fd;
    int ready;
    int carried;
    int head_length;
    enum where where;
    size_t chunk; /* bytes of the chunk that have not come */
    uint64_t next;
    char carry[CARRY];
    char *head;
};

static struct client *clients;
static int count_of_clients, started, ready, slow, joins_per_second, retries;
static int poller;
static int port;
static const char *ready_mark, *mark;
static char *requests[MAX_REQUESTS];
static size_t request_lengths[MAX_REQUESTS], count_of_requests;
static char buffer[CARRY + BUFFER];

static uint64_t first_number, numbers;
static uint64_t *arrivals;   /* one row per number, filled from the left */
static uint32_t *arrived;    /* entries of each row that are filled */
static uint64_t wrong, left;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void connect_client(int i) {
    struct client *c = &clients[i];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int yes = 1, small = 4096;
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (slow) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(i / PER_ADDRESS));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)port);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("bind");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    struct epoll_event e = {.events = EPOLLOUT, .data.u32 = (uint32_t)i};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

static void connect_next(void) {
    connect_client(started++);
}

static void send_request(struct client *c, uint32_t i) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        errno = error;
        die("connect");
    }
    size_t which = i % count_of_requests, length = request_lengths[which];
    if (send(c->fd, requests[which], length, MSG_NOSIGNAL) != (ssize_t)length) die("send");
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

/* End this client; the others go on. */
static void lost(struct client *c, const char *why) {
    wrong++;
    close(c->fd);
    c->fd = -1;
    printf("{\"lost\": %ld, \"why\": \"%s\"}\n", (long)(c - clients), why);
    fflush(stdout);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void report(void) {
    int n = count_of_clients;
    printf("{\"rows\": [");
    for (uint64_t r = 0; r < numbers; r++) {
        uint64_t *row = arrivals + r * (uint64_t)n;
        qsort(row, (size_t)n, sizeof *row, by_value);
        printf("%s[%lu, %lu, %lu, %lu]", r ? ", " : "", row[0], row[n / 2], row[(int)(n * 0.99)], row[n - 1]);
    }
    printf("], \"wrong\": %lu}\n", wrong);
    fflush(stdout);
}

static void delivered(struct client *c, uint64_t number, uint64_t at) {
    if (number != c->next || number - first_number >= numbers) {
        char why[80];
        snprintf(why, sizeof why, "%lu came after %lu", number, c->next - 1);
        lost(c, why);
        return;
    }
    c->next++;
    uint64_t row = number - first_number;
    arrivals[row * (uint64_t)count_of_clients + arrived[row]++] = at;
    if (arrived[row] == (uint32_t)count_of_clients) {
        printf("{\"served\": %lu}\n", number);
        fflush(stdout);
    }
    if (--left == 0) report();
}

/* Move the body's bytes of *data* to its front; return their number. */
static size_t body(struct client *c, char *data, size_t length) {
    char *in = data, *out = data, *end = data + length;
    while (in < end) {
        switch (c->where) {
        case HEAD:
            if (!c->head) c->head = malloc(MAX_HEAD + 1);
            if (!c->head || c->head_length == MAX_HEAD) die("head");
            c->head[c->head_length++] = *in++;
            if (c->head_length >= 4 && !memcmp(c->head + c->head_length - 4, "\r\n\r\n", 4)) {
                c->head[c->head_length] = 0;
                c->where = strcasestr(c->head, "\nTransfer-Encoding: chunked") ? SIZE : NOT_CHUNKED;
                free(c->head);
                c->head = NULL;
            }
            break;
        case SIZE: {
            int digit = *in++;
            if (digit == '\n') {
                if (!c->chunk) return (size_t)(out - data); /* the last chunk: the connection ends next */
                c->where = DATA;
            } else if (digit != '\r') {
                c->chunk = c->chunk * 16 + (size_t)(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10);
            }
            break;
        }
        case DATA: {
            size_t some = (size_t)(end - in) < c->chunk ? (size_t)(end - in) : c->chunk;
            memmove(out, in, some);
            in += some;
            out += some;
            c->chunk -= some;
            if (!c->chunk) c->where = DATA_END;
            break;
        }
        case DATA_END:
            if (*in++ == '\n') c->where = SIZE;
            break;
        case NOT_CHUNKED:
            memmove(out, in, (size_t)(end - in));
            return (size_t)(out - data) + (size_t)(end - in);
        }
    }
    return (size_t)(out - data);
}

/* Bytes left over at the end (the start of a mark, or an incomplete number) are carried to the next read. */
static void scan(struct client *c, char *data, size_t length, uint64_t at) {
    char *p = data, *end = data + length;
    if (!c->ready) {
        char *found = c->where == HEAD ? NULL : memmem(p, length, ready_mark, strlen(ready_mark));
        if (found) {
            c->ready = 1;
            p = found + strlen(ready_mark);
            if (++ready == count_of_clients) {
                printf("{\"ready\": %d}\n", ready);
                fflush(stdout);
            }
            if (started < count_of_clients && !joins_per_second) connect_next();
        }
    }
    const char *wanted = c->ready ? mark : ready_mark;
    size_t wanted_length = strlen(wanted);
    while (c->ready && !slow && c->fd >= 0) {
        char *found = memmem(p, (size_t)(end - p), wanted, wanted_length);
        if (!found) break;
        char *digit = found + wanted_length;
        uint64_t number = 0;
        while (digit < end && *digit >= '0' && *digit <= '9') number = number * 10 + (uint64_t)(*digit++ - '0');
        if (digit == end) {
            p = found;
            wanted_length = CARRY; /* keep everything */
            break;
        }
        delivered(c, number, at);
        p = digit;
    }
    size_t keep = (size_t)(end - p) < wanted_length ? (size_t)(end - p) : wanted_length ? wanted_length - 1 : 0;
    if (keep > CARRY) keep = CARRY;
    memcpy(c->carry, end - keep, keep);
    c->carried = (int)keep;
}

static void receive(struct client *c, size_t most) {
    memcpy(buffer, c->carry, (size_t)c->carried);
    ssize_t n = recv(c->fd, buffer + c->carried, most, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 && ready < count_of_clients && retries < RETRIES) {
        retries++;
        ready -= c->ready;
        c->ready = c->head_length = 0;
        c->where = HEAD;
        c->chunk = 0;
        close(c->fd);
        c->carried = 0;
        connect_client((int)(c - clients));
        return;
    }
    if (n <= 0) {
        lost(c, n ? strerror(errno) : "closed by the server");
        return;
    }
    scan(c, buffer, (size_t)c->carried + body(c, buffer + c->carried, (size_t)n), now());
}

static void expect(uint64_t first, uint64_t count) {
    free(arrivals);
    free(arrived);
    first_number = first;
    numbers = count;
    left = count * (uint64_t)count_of_clients;
    arrivals = malloc(left * sizeof *arrivals);
    arrived = calloc(count, sizeof *arrived);
    if (!arrivals || !arrived) die("malloc");
    for (int i = 0; i < count_of_clients; i++) clients[i].next = first;
    printf("{\"expecting\": %lu}\n", first);
    fflush(stdout);
}

static void command(void) {
    static char line[256];
    static size_t length;
    ssize_t n = read(0, line + length, sizeof line - 1 - length);
    if (n <= 0) exit(0);
    length += (size_t)n;
    char *end;
    while ((end = memchr(line, '\n', length))) {
        *end = 0;
        unsigned long first, count;
        if (sscanf(line, "expect %lu %lu", &first, &count) != 2) {
            fprintf(stderr, "no such command: %s\n", line);
            exit(2);
        }
        expect(first, count);
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length);
    }
}

static void read_requests(void) {
    static char line[8 * MAX_REQUESTS];
    size_t n = 0;
    while (n < sizeof line - 1 && read(0, line + n, 1) == 1 && line[n] != '\n') n++;
    line[n] = 0;
    char *left = line;
    for (size_t length; (length = strtoul(left, &left, 10)) && count_of_requests < MAX_REQUESTS;)
        request_lengths[count_of_requests++] = length;
    if (!count_of_requests) die("no request");
    for (size_t i = 0; i < count_of_requests; i++) {
        requests[i] = malloc(request_lengths[i]);
        if (!requests[i]) die("malloc");
        for (size_t got = 0; got < request_lengths[i];) {
            ssize_t more = read(0, requests[i] + got, request_lengths[i] - got);
            if (more <= 0) die("request");
            got += (size_t)more;
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: load PORT CLIENTS READY MARK [BYTES_PER_SECOND [JOINS_PER_SECOND]]\n");
        return 2;
    }
    port = atoi(argv[1]);
    count_of_clients = atoi(argv[2]);
    ready_mark = argv[3];
    mark = argv[4];
    slow = argc > 5 ? atoi(argv[5]) : 0;
    joins_per_second = argc > 6 ? atoi(argv[6]) : 0;
    clients = calloc((size_t)count_of_clients, sizeof *clients);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!clients || poller < 0) die("epoll_create1");
    read_requests();

    const uint32_t commands = UINT32_MAX, tick = UINT32_MAX - 1, join = UINT32_MAX - 2;
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = commands};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &e)) die("stdin");
    int timer = -1;
    if (slow) {
        struct itimerspec every = {{0, 1000000000 / TICKS}, {0, 1000000000 / TICKS}};
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
        timerfd_settime(timer, 0, &every, NULL);
        e.data.u32 = tick;
        if (epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e)) die("timer");
    }
    const uint64_t begun = now();
    int joining = -1;
    if (joins_per_second) {
        struct itimerspec every = {{0, 1000000}, {0, 1000000}};
        joining = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
        timerfd_settime(joining, 0, &every, NULL);
        e.data.u32 = join;
        if (epoll_ctl(poller, EPOLL_CTL_ADD, joining, &e)) die("timer");
    }
    while (started < count_of_clients && started < ON_THE_WAY && !joins_per_second) connect_next();

    struct epoll_event events[512];
    for (;;) {
        int n = epoll_wait(poller, events, 512, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            uint32_t which = events[i].data.u32;
            if (which == commands) {
                command();
            } else if (which == join) {
                uint64_t times, due = (now() - begun) * (uint64_t)joins_per_second / 1000000000u;
                if (read(joining, &times, sizeof times) < 0) continue;
                while (started < count_of_clients && (uint64_t)started < due) connect_next();
                if (started == count_of_clients) close(joining);
            } else if (which == tick) {
                uint64_t times;
                if (read(timer, &times, sizeof times) < 0) continue;
                for (int k = 0; k < started; k++)
                    if (clients[k].ready && clients[k].fd >= 0) receive(&clients[k], (size_t)(slow / TICKS));
            } else if (clients[which].fd >= 0) {
                struct client *c = &clients[which];
                if (events[i].events & EPOLLOUT) {
                    send_request(c, which);
                } else {
                    receive(c, BUFFER);
                    if (slow && c->ready && c->fd >= 0) epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
                }
            }
        }
    }
}
