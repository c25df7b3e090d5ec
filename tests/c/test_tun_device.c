/* The TUN device: opened, identified; an older kernel has only some of the wanted offloads, each set is tried once. */
#include "tun_device.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "offload.h"
#include "rig.h"

enum { USO_FLAGS = 0x60, EVERY = OFFLOAD_TSO | OFFLOAD_USO };

static unsigned refused_flags; /* of TUNSETOFFLOAD */
static unsigned asked;

static int older_kernel(int fd, unsigned long request, void *argument)
{
    if (request != TUNSETOFFLOAD)
        return faults_real_ioctl(fd, request, argument);
    asked++;
    if (((uintptr_t)argument & refused_flags) == 0)
        return faults_real_ioctl(fd, request, argument);
    errno = EINVAL;
    return -1;
}

/* What the device ends up with, and after how many questions. */
static void check(bool vnet_header, unsigned wanted, unsigned expected, unsigned questions)
{
    char name[TUN_NAME_SIZE];
    struct tun_device tun;
    int fd = tun_device_open("tun%d", vnet_header, name);
    CHECK(fd >= 0);
    asked = 0;
    CHECK_EQ(tun_device_attach(&tun, fd, wanted), 0);
    CHECK_EQ(tun.vnet_header, vnet_header);
    CHECK_EQ(tun.offloads, expected);
    CHECK_EQ(asked, questions);
    close(fd);
}

static void every_kernel_gives_what_it_has_of_the_wanted_offloads(void)
{
    faults_replace_ioctl(older_kernel);
    refused_flags = 0;
    check(true, EVERY, EVERY, 1);
    check(true, OFFLOAD_TSO, OFFLOAD_TSO, 1);
    check(true, OFFLOAD_USO, 0, 1); /* it needs TSO */
    check(true, OFFLOAD_UDP_GSO | OFFLOAD_UDP_GRO, 0, 1);
    check(false, EVERY, 0, 0);
    refused_flags = USO_FLAGS;
    check(true, EVERY, OFFLOAD_TSO, 2);
    check(true, OFFLOAD_TSO, OFFLOAD_TSO, 1);
    refused_flags = USO_FLAGS | TUN_F_TSO4;
    check(true, EVERY, 0, 3);
    check(true, OFFLOAD_TSO, 0, 2);
    faults_replace_ioctl(NULL);
}

static int broken_kernel(int fd, unsigned long request, void *argument)
{
    if (request != TUNSETOFFLOAD)
        return faults_real_ioctl(fd, request, argument);
    errno = EIO;
    return -1;
}

static void a_device_that_cannot_be_set_up_is_an_error(void)
{
    char name[TUN_NAME_SIZE];
    struct tun_device tun;
    int fd = tun_device_open("tun%d", true, name);
    faults_replace_ioctl(broken_kernel);
    CHECK_EQ(tun_device_attach(&tun, fd, EVERY), -EIO);
    CHECK_EQ(tun_device_attach(&tun, fd, 0), -EIO);
    faults_replace_ioctl(NULL);
    CHECK(tun_device_attach(&tun, STDIN_FILENO, EVERY) < 0); /* no TUN device */
    close(fd);
}

static void a_device_that_cannot_be_opened_is_an_error_and_leaves_nothing(void)
{
    char name[TUN_NAME_SIZE];
    bool vnet_header;
    CHECK_EQ(tun_device_open("a-name-as-long-as-ifnamsiz", true, name), -ENAMETOOLONG);
    CHECK_EQ(tun_device_open("sixteen-letters!", true, name), -ENAMETOOLONG);
    size_t descriptors = rig_descriptors();
    CHECK_EQ(tun_device_open("no/name", true, name), -EINVAL);
    CHECK_EQ(tun_device_open("lo", true, name), -EINVAL);
    CHECK_EQ(rig_descriptors(), descriptors);
    CHECK_EQ(tun_device_identify(STDIN_FILENO, name, &vnet_header) < 0, 1);
}

static void a_device_is_identified_by_its_descriptor(void)
{
    for (int with = 0; with < 2; with++) {
        char opened[TUN_NAME_SIZE], name[TUN_NAME_SIZE];
        bool vnet_header = with == 0;
        int fd = tun_device_open("tun%d", with != 0, opened);
        CHECK_EQ(tun_device_identify(fd, name, &vnet_header), 0);
        CHECK(strcmp(name, opened) == 0 && vnet_header == (with != 0));
        close(fd);
    }
}

static void without_a_descriptor_left_a_device_is_not_opened(void)
{
    char name[TUN_NAME_SIZE];
    struct rlimit before, none;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    CHECK_EQ(tun_device_open("tun%d", true, name), -EMFILE);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN(every_kernel_gives_what_it_has_of_the_wanted_offloads);
    RUN(a_device_that_cannot_be_set_up_is_an_error);
    RUN(a_device_that_cannot_be_opened_is_an_error_and_leaves_nothing);
    RUN(a_device_is_identified_by_its_descriptor);
    RUN(without_a_descriptor_left_a_device_is_not_opened);
}
